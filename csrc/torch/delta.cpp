// torch.ops.sparsecore: CSR to the delta format and back, on the CPU, and the schema of what runs on it.
#include "torch/delta.h"

#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "sparsecore/pack.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#include "torch/validated.h"

namespace sparsecore::torch_binding {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

bool is_16_bits(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace

void check_delta_shape(const DeltaShape& shape) {
  check(shape.rows >= 0 && shape.cols >= 0 && shape.rows <= kMaxInt32 && shape.cols <= kMaxInt32 &&
            shape.units() < kMaxInt32,
        "expected a delta weight with N and K in [0, 2^31) and fewer than 2^31 rows of panels, got N = ", shape.rows,
        " and K = ", shape.cols);
}

DeltaTensors delta_tensors(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  check(tensors.size() == 5 && sizes.size() == 2, "expected a delta weight of 5 tensors and 2 sizes");
  const DeltaTensors result{{sizes[0], sizes[1]}, tensors[1].numel() / kDeltaQuad, tensors[3].numel() - 1};
  check_delta_shape(result.shape);
  const ScalarType type = tensors[2].scalar_type();
  check(is_16_bits(type) || type == ScalarType::Char, "expected float16, bfloat16 or int8 values, got ",
        dtype_name(type));
  check(tensors[0].numel() == result.shape.units() + 1 && tensors[1].numel() == result.quads * kDeltaQuad &&
            tensors[2].numel() == tensors[1].numel() && result.quads <= kMaxInt32 && result.num_blocks >= 1 &&
            tensors[4].numel() == (type == ScalarType::Char ? result.shape.rows : 0),
        "expected a delta weight whose tensors fit together");
  return result;
}

namespace {

// What a row of a weight costs to go through.
int64_t work_of_row(const DeltaShape& shape, int64_t entries) {
  return shape.panels() + 2 * entries / std::max<int64_t>(shape.rows, 1);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> pack(const CsrView<T>& weight, const Tensor& like, ScalarType type,
                                                int64_t num_blocks) {
  const DeltaShape shape{weight.rows, weight.cols};
  const int64_t work = work_of_row(shape, weight.nnz);
  const Tensor quad_ptr = new_tensor(like, {shape.units() + 1}, ScalarType::Int);
  int32_t* quads = quad_ptr.mutable_data_ptr<int32_t>();
  quads[0] = 0;
  for_parts(shape.rows, work, [&](Range rows) { count_delta<T>(weight, shape, rows, quads); });
  const int64_t all = running_sum(quads, shape.units());
  check(all <= kMaxInt32, "expected a weight of fewer than 2^33 codes");
  const Tensor codes = new_tensor(like, {all * kDeltaQuad}, ScalarType::Byte);
  const Tensor values = new_tensor(like, {all * kDeltaQuad}, type);
  auto* bytes = codes.mutable_data_ptr<uint8_t>();
  auto* numbers = static_cast<T*>(values.mutable_data_ptr());
  for_parts(shape.rows, work, [&](Range rows) { fill_delta<T>(weight, shape, rows, quads, bytes, numbers); });
  const Tensor block_ptr = new_tensor(like, {num_blocks + 1}, ScalarType::Int);
  split_delta(quads, shape.units(), num_blocks, block_ptr.mutable_data_ptr<int32_t>());
  return {quad_ptr, codes, values, block_ptr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_delta(const Tensor& row_ptr, const Tensor& col_idx,
                                                      const Tensor& values, int64_t cols, int64_t num_blocks) {
  const ScalarType type = values.scalar_type();
  check(is_16_bits(type) || type == ScalarType::Char, "expected float16, bfloat16 or int8 values, got ",
        dtype_name(type));
  check(num_blocks >= 1 && num_blocks <= 65536, "expected 1 to 65536 blocks, got ", num_blocks);
  check(row_ptr.numel() >= 1, "expected row_ptr [N + 1], got none");
  check_delta_shape({row_ptr.numel() - 1, cols});
  if (type == ScalarType::Char) {
    return pack(validated_view<int8_t>(row_ptr, col_idx, values, cols), row_ptr, type, num_blocks);
  }
  return pack(validated_view<uint16_t>(row_ptr, col_idx, values, cols), row_ptr, type, num_blocks);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> unpack(const DeltaTensors& tensors, const std::vector<Tensor>& weight) {
  const DeltaShape& shape = tensors.shape;
  const DeltaView<T> view{shape, weight[0].const_data_ptr<int32_t>(), weight[1].const_data_ptr<uint8_t>(),
                          data_of<T>(weight[2]), tensors.quads};
  const int64_t work = work_of_row(shape, view.quads * kDeltaQuad);
  const char* problem = find_problem(shape.rows, work, [&](Range rows) { return validate_delta(view, rows); });
  if (problem == nullptr && (view.quad_ptr[0] != 0 || view.quad_ptr[shape.units()] != view.quads)) {
    problem = "quad_ptr must rise from 0 to the end of the arrays";
  }
  if (problem != nullptr) fail("invalid delta weight: ", problem);
  const Tensor row_ptr = new_tensor(weight[0], {shape.rows + 1}, ScalarType::Int);
  int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
  ends[0] = 0;
  for_parts(shape.rows, work, [&](Range rows) { count_unpacked_delta(view, rows, ends); });
  const int64_t nnz = running_sum(ends, shape.rows);
  check(nnz <= kMaxInt32, "expected fewer than 2^31 stored values");
  const Tensor col_idx = new_tensor(weight[0], {nnz}, ScalarType::Int);
  const Tensor values = new_tensor(weight[0], {nnz}, weight[2].scalar_type());
  int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
  auto* numbers = static_cast<T*>(values.mutable_data_ptr());
  for_parts(shape.rows, work, [&](Range rows) { sparsecore::unpack_delta(view, rows, ends, columns, numbers); });
  return {row_ptr, col_idx, values};
}

std::tuple<Tensor, Tensor, Tensor> unpack_delta(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const DeltaTensors tensors = delta_tensors(weight, sizes);
  check_tensor(weight[0], "quad_ptr", ScalarType::Int, 1);
  check_tensor(weight[1], "codes", ScalarType::Byte, 1);
  check_tensor(weight[2], "values", weight[2].scalar_type(), 1);
  if (weight[2].scalar_type() == ScalarType::Char) return unpack<int8_t>(tensors, weight);
  return unpack<uint16_t>(tensors, weight);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "pack_delta(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int num_blocks) -> "
      "(Tensor quad_ptr, Tensor codes, Tensor values, Tensor block_ptr)");
  m.def("unpack_delta(Tensor[] weight, int[] sizes) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def("expand_delta(Tensor x, Tensor[] weight, int[] sizes) -> Tensor");
  m.def("spmm_delta(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("pack_delta", TORCH_BOX(&pack_delta));
  m.impl("unpack_delta", TORCH_BOX(&unpack_delta));
}

}  // namespace sparsecore::torch_binding
