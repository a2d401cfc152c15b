// torch.ops.sparsecore: CSR to the fragment format and back, on the CPU, and the schemas of what runs on it.
#include "torch/fragment.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "sparsecore/pack.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#include "torch/validated.h"

namespace sparsecore::torch_binding {

FragmentTensors fragment_tensors(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() - kFragmentTile;
  check(tensors.size() == 5 && sizes.size() == 5, "expected a fragment weight of 5 tensors and 5 sizes");
  FragmentTensors result{{sizes[0], sizes[1], static_cast<int>(sizes[2])}, sizes[3], sizes[4], tensors[2].numel() - 1};
  const FragmentShape& shape = result.shape;
  check(
      shape.rows >= 0 && shape.rows <= kMax && shape.cols >= 0 && shape.cols <= kMax && shape.num_tiles() <= kMaxTiles,
      "expected a fragment weight with N and K in [0, 2^31) and at most 2^30 tiles");
  check(sizes[2] == 16 || sizes[2] == 8 || sizes[2] == 4, "expected values of 16, 8 or 4 bits, got ", sizes[2]);
  check(sizes[2] == 16 ? sizes[4] == 1 || sizes[4] == 2 : sizes[4] == 0,
        "expected float16 or bfloat16 exactly with values of 16 bits");
  check(sizes[3] >= kFragmentMaskBytes && sizes[3] <= kFragmentMaxTileBytes && sizes[3] % kFragmentUnit == 0,
        "expected tiles of ", kFragmentMaskBytes, " to ", kFragmentMaxTileBytes, " bytes, got ", sizes[3]);
  check(tensors[0].numel() == shape.num_tiles() + 1 && result.num_blocks >= 1 &&
            tensors[3].numel() == shape.row_tiles() && tensors[4].numel() == (shape.value_bits == 8 ? shape.rows : 0) &&
            tensors[1].numel() % kFragmentUnit == 0,
        "expected a fragment weight whose tensors fit together");
  return result;
}

namespace {

// Blocks of rows of tiles are independent; work: what each of them reads.
int64_t work_of_row(const FragmentShape& shape, int64_t values) {
  return shape.col_tiles() * kFragmentTile + values / std::max<int64_t>(shape.row_tiles(), 1);
}

template <class T>
std::tuple<Tensor, Tensor> pack_tiles(const CsrView<T>& weight, const FragmentShape& shape, const uint16_t* scales,
                                      const Tensor& like) {
  const int64_t work = work_of_row(shape, weight.nnz);
  const Tensor tile_ptr = new_tensor(like, {shape.num_tiles() + 1}, ScalarType::Int);
  int32_t* units = tile_ptr.mutable_data_ptr<int32_t>();
  units[0] = 0;
  for_parts(shape.row_tiles(), work, [&](Range rows) { count_fragment<T>(weight, shape, rows, units); });
  const int64_t all = running_sum(units, shape.num_tiles());
  check(all <= std::numeric_limits<int32_t>::max(), "expected a weight of less than 32 GiB");
  const Tensor blob = new_tensor(like, {all * kFragmentUnit}, ScalarType::Byte);
  uint8_t* bytes = blob.mutable_data_ptr<uint8_t>();
  for_parts(shape.row_tiles(), work, [&](Range rows) { fill_fragment<T>(weight, shape, scales, rows, units, bytes); });
  return {tile_ptr, blob};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_fragment(const Tensor& row_ptr, const Tensor& col_idx,
                                                         const Tensor& values, int64_t cols, int64_t value_bits,
                                                         const std::optional<Tensor>& group_scales,
                                                         int64_t num_blocks) {
  const ScalarType type = values.scalar_type();
  const bool is_float = type == ScalarType::Half || type == ScalarType::BFloat16;
  check(value_bits == 16 ? is_float : (value_bits == 8 || value_bits == 4) && type == ScalarType::Char,
        "expected float16 or bfloat16 values of 16 bits, or int8 values of 8 or 4, got ", dtype_name(type), " of ",
        value_bits);
  check(num_blocks >= 1 && num_blocks <= 65536, "expected 1 to 65536 blocks, got ", num_blocks);
  check(row_ptr.numel() >= 1 && cols >= 0, "expected row_ptr [N + 1] and K >= 0");
  const FragmentShape shape{row_ptr.numel() - 1, cols, static_cast<int>(value_bits)};
  check(cols <= std::numeric_limits<int32_t>::max() && shape.num_tiles() <= kMaxTiles,
        "expected K < 2^31 and at most 2^30 tiles of 64 x 64");
  const uint16_t* scales = nullptr;
  check(group_scales.has_value() == (value_bits == 4), "expected group_scales exactly with values of 4 bits");
  if (group_scales) {
    check_tensor(*group_scales, "group_scales", ScalarType::Half, 2);
    check(group_scales->size(0) == shape.rows && group_scales->size(1) == shape.col_tiles(),
          "expected group_scales of shape [", shape.rows, ", ", shape.col_tiles(), "], got ",
          shape_text(*group_scales));
    scales = static_cast<const uint16_t*>(group_scales->const_data_ptr());
  }
  Tensor tile_ptr = row_ptr, blob = row_ptr;
  if (is_float) {
    const auto csr = validated_view<uint16_t>(row_ptr, col_idx, values, cols);
    std::tie(tile_ptr, blob) = pack_tiles<uint16_t>(csr, shape, scales, row_ptr);
  } else {
    const auto csr = validated_view<int8_t>(row_ptr, col_idx, values, cols);
    const bool fits = value_bits == 8 || std::all_of(csr.values, csr.values + csr.nnz,
                                                     [](int8_t value) { return value >= -8 && value <= 7; });
    check(fits, "expected values of 4 bits in [-8, 7]");
    std::tie(tile_ptr, blob) = pack_tiles<int8_t>(csr, shape, scales, row_ptr);
  }
  const Tensor block_ptr = new_tensor(row_ptr, {num_blocks + 1}, ScalarType::Int);
  const Tensor row_block = new_tensor(row_ptr, {shape.row_tiles()}, ScalarType::Int);
  const FragmentView view{shape, tile_ptr.const_data_ptr<int32_t>(), blob.const_data_ptr<uint8_t>(), blob.numel()};
  split_fragment(view, num_blocks, block_ptr.mutable_data_ptr<int32_t>(), row_block.mutable_data_ptr<int32_t>());
  return {tile_ptr, blob, block_ptr, row_block};
}

// Values of 16 bits come back as int16, their bits.
std::tuple<Tensor, Tensor, Tensor, Tensor> unpack_fragment(const std::vector<Tensor>& weight,
                                                           const std::vector<int64_t>& sizes) {
  const FragmentTensors tensors = fragment_tensors(weight, sizes);
  check_tensor(weight[0], "tile_ptr", ScalarType::Int, 1);
  check_tensor(weight[1], "blob", ScalarType::Byte, 1);
  const FragmentShape& shape = tensors.shape;
  const FragmentView view{shape, weight[0].const_data_ptr<int32_t>(), weight[1].const_data_ptr<uint8_t>(),
                          weight[1].numel()};
  const int64_t work = shape.col_tiles() * kFragmentTile * kFragmentTile / 8;
  const char* problem =
      find_problem(shape.row_tiles(), work, [&](Range rows) { return validate_fragment(view, rows); });
  if (problem == nullptr &&
      (view.tile_ptr[0] != 0 || view.tile_ptr[shape.num_tiles()] != view.blob_bytes / kFragmentUnit)) {
    problem = "tile_ptr must rise from 0 to the end of the blob";
  }
  if (problem != nullptr) fail("invalid fragment weight: ", problem);
  const bool is_float = shape.value_bits == 16, has_groups = shape.value_bits == 4;
  const Tensor row_ptr = new_tensor(weight[0], {shape.rows + 1}, ScalarType::Int);
  int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
  for_parts(shape.row_tiles(), work, [&](Range rows) { count_unpacked(view, rows, ends); });
  const int64_t nnz = running_sum(ends, shape.rows);
  check(nnz <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 stored values");
  const Tensor col_idx = new_tensor(weight[0], {nnz}, ScalarType::Int);
  const Tensor values = new_tensor(weight[0], {nnz}, is_float ? ScalarType::Short : ScalarType::Char);
  const Tensor scales =
      new_tensor(weight[0], {has_groups ? shape.rows : 0, has_groups ? shape.col_tiles() : 0}, ScalarType::Half);
  int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
  for_parts(shape.row_tiles(), work, [&](Range rows) {
    if (is_float) {
      sparsecore::unpack_fragment<uint16_t>(view, rows, ends, columns,
                                            static_cast<uint16_t*>(values.mutable_data_ptr()));
    } else {
      sparsecore::unpack_fragment<int8_t>(view, rows, ends, columns, static_cast<int8_t*>(values.mutable_data_ptr()));
    }
    if (has_groups) unpack_group_scales(view, rows, static_cast<uint16_t*>(scales.mutable_data_ptr()));
  });
  return {row_ptr, col_idx, values, scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "pack_fragment(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int value_bits, Tensor? group_scales, "
      "int num_blocks) -> (Tensor tile_ptr, Tensor blob, Tensor block_ptr, Tensor row_block)");
  m.def(
      "unpack_fragment(Tensor[] weight, int[] sizes) -> (Tensor row_ptr, Tensor col_idx, Tensor values, "
      "Tensor group_scales)");
  m.def(
      "spmm_fragment(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation) -> "
      "Tensor");
  m.def("expand_fragment(Tensor x, Tensor[] weight, int[] sizes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("pack_fragment", TORCH_BOX(&pack_fragment));
  m.impl("unpack_fragment", TORCH_BOX(&unpack_fragment));
}

}  // namespace sparsecore::torch_binding
