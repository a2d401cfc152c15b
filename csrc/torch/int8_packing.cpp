// torch.ops.sparsecore.pack_lookup, pack_lookup_int4 and back: integers to the lookup formats.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>
#include <vector>

#include "sparsecore/pack.h"
#include "torch/checks.h"
#include "torch/int8_weights.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// int8 [N, K], one group -> the tensors of the lookup format for the best kernel of this machine, or for lanes, table
// and pairs given.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pack_lookup(const Tensor& weight, int64_t segments, int64_t lanes,
                                                               int64_t table, bool has_safe_pairs) {
  check_tensor(weight, "weight", ScalarType::Char, 2);
  LookupView shape =
      shape_of_weight<LookupView>({weight.size(0), weight.size(1), segments, lanes, table, 1, has_safe_pairs}).first;
  const int64_t blocks = shape.num_blocks(), work = shape.lanes * shape.cols;
  const int8_t* dense = weight.const_data_ptr<int8_t>();
  const Tensor entry_ptr = new_tensor(weight, {blocks + 1}, ScalarType::Int);
  const Tensor step_ptr = new_tensor(weight, {blocks + 1}, ScalarType::Int);
  int32_t *entries = entry_ptr.mutable_data_ptr<int32_t>(), *steps = step_ptr.mutable_data_ptr<int32_t>();
  entries[0] = steps[0] = 0;
  for_parts(blocks, work, [&](Range part) { count_lookup(dense, shape, part, entries, steps); });
  const int64_t num_entries = running_sum(entries, blocks), num_steps = running_sum(steps, blocks);
  check(num_steps <= std::numeric_limits<int32_t>::max() && num_entries <= std::numeric_limits<int32_t>::max(),
        "expected fewer than 2^31 steps; split the layer");
  const Tensor entry_group = new_tensor(weight, {num_entries}, ScalarType::Short);
  const Tensor entry_steps = new_tensor(weight, {num_entries}, ScalarType::Byte);
  const Tensor slots = new_tensor(weight, {num_steps * 2 * shape.quad_bytes()}, ScalarType::Byte);
  const LookupArrays out{entries, steps, static_cast<uint16_t*>(entry_group.mutable_data_ptr()),
                         entry_steps.mutable_data_ptr<uint8_t>(), slots.mutable_data_ptr<uint8_t>()};
  for_parts(blocks, work, [&](Range part) { fill_lookup(dense, shape, part, out); });
  return {entry_ptr, step_ptr, entry_group, entry_steps, slots};
}

Tensor unpack_lookup_tensors(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const LookupView view = packed_weight<LookupView>(weight, sizes).first;
  check(sizes[5] == 1, "expected one group");
  if (const char* text = validate_lookup(view, {0, view.num_blocks()})) {
    fail("invalid lookup weight: ", text, "; pack it again");
  }
  const Tensor dense = new_tensor(weight[0], {view.rows, view.cols}, ScalarType::Char);
  int8_t* values = dense.mutable_data_ptr<int8_t>();
  for_parts(view.num_blocks(), view.lanes * view.cols, [&](Range part) { unpack_lookup(view, part, values); });
  return dense;
}

// int8 [N, K] of 4 bits -> the tensors of the lookup format with group scales, but for those.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pack_lookup_int4(const Tensor& weight, int64_t lanes, int64_t table,
                                                                    int64_t group_size) {
  check_tensor(weight, "weight", ScalarType::Char, 2);
  const LookupInt4View shape = shape_of_int4({weight.size(0), weight.size(1), lanes, table, group_size});
  const int64_t blocks = shape.num_blocks(), work = shape.lanes * shape.cols;
  const int8_t* dense = weight.const_data_ptr<int8_t>();
  std::atomic<bool> fits = true;
  for_parts(shape.rows, shape.cols, [&](Range rows) {
    const int8_t *first = dense + rows.begin * shape.cols, *last = dense + rows.end * shape.cols;
    if (!std::all_of(first, last, [](int8_t value) { return value >= -8 && value <= 7; })) fits = false;
  });
  check(fits, "expected a weight of integers in [-8, 7]");
  const Tensor entry_ptr = new_tensor(weight, {blocks * shape.groups() + 1}, ScalarType::Int);
  const Tensor step_ptr = new_tensor(weight, {blocks + 1}, ScalarType::Int);
  int32_t *entries = entry_ptr.mutable_data_ptr<int32_t>(), *steps = step_ptr.mutable_data_ptr<int32_t>();
  entries[0] = steps[0] = 0;
  for_parts(blocks, work, [&](Range part) { count_lookup_int4(dense, shape, part, entries, steps); });
  const int64_t num_entries = running_sum(entries, blocks * shape.groups()), num_steps = running_sum(steps, blocks);
  check(num_steps <= std::numeric_limits<int32_t>::max() && num_entries <= std::numeric_limits<int32_t>::max(),
        "expected fewer than 2^31 steps; split the layer");
  const Tensor entry_table = new_tensor(weight, {num_entries}, ScalarType::Byte);
  const Tensor entry_steps = new_tensor(weight, {num_entries}, ScalarType::Byte);
  const Tensor slots = new_tensor(weight, {num_steps * shape.quad_bytes()}, ScalarType::Byte);
  const LookupInt4Arrays out{entries, steps, entry_table.mutable_data_ptr<uint8_t>(),
                             entry_steps.mutable_data_ptr<uint8_t>(), slots.mutable_data_ptr<uint8_t>()};
  for_parts(blocks, work, [&](Range part) { fill_lookup_int4(dense, shape, part, out); });
  return {entry_ptr, step_ptr, entry_table, entry_steps, slots};
}

Tensor unpack_lookup_int4_tensors(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const LookupInt4View view = packed_weight<LookupInt4View>(weight, sizes).first;
  if (const char* text = validate_lookup_int4(view, {0, view.num_blocks()})) {
    fail("invalid lookup4 weight: ", text, "; pack it again");
  }
  const Tensor dense = new_tensor(weight[0], {view.rows, view.cols}, ScalarType::Char);
  int8_t* values = dense.mutable_data_ptr<int8_t>();
  for_parts(view.num_blocks(), view.lanes * view.cols, [&](Range part) { unpack_lookup_int4(view, part, values); });
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "pack_lookup(Tensor weight, int segments, int lanes, int table, bool has_safe_pairs) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("unpack_lookup(Tensor[] weight, int[] sizes) -> Tensor");
  m.def(
      "pack_lookup_int4(Tensor weight, int lanes, int table, int group_size) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("unpack_lookup_int4(Tensor[] weight, int[] sizes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("pack_lookup", TORCH_BOX(&pack_lookup));
  m.impl("unpack_lookup", TORCH_BOX(&unpack_lookup_tensors));
  m.impl("pack_lookup_int4", TORCH_BOX(&pack_lookup_int4));
  m.impl("unpack_lookup_int4", TORCH_BOX(&unpack_lookup_int4_tensors));
}

}  // namespace sparsecore::torch_binding
