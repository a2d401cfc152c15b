// torch.ops.sparsecore: dense to CSR to panels or bitmaps, and back.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "sparsecore/pack.h"
#include "torch/checks.h"
#include "torch/parallel.h"
#include "torch/tensors.h"
#include "torch/validated.h"

namespace sparsecore::torch_binding {
namespace {

// Calls function(constant T) with the type that packing uses for a dtype.
template <class Function>
void with_packed_type(ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return function(uint16_t{});
    case ScalarType::Char:
      return function(int8_t{});
    default:
      fail("expected a float32, float16, bfloat16 or int8 weight; convert it first");
  }
}

std::tuple<Tensor, Tensor, Tensor> pack_csr(const Tensor& weight, const std::optional<Tensor>& mask) {
  check_tensor(weight, "weight", weight.scalar_type(), 2);
  const int64_t N = weight.size(0), K = weight.size(1);
  check(K <= std::numeric_limits<int32_t>::max(), "expected K < 2^31, got ", K);
  const bool* kept = nullptr;
  if (mask) {
    check_tensor(*mask, "mask", ScalarType::Bool, 2);
    check(mask->size(0) == N && mask->size(1) == K, "expected mask of shape ", shape_text(weight), ", got ",
          shape_text(*mask));
    kept = static_cast<const bool*>(mask->const_data_ptr());
  }
  Tensor row_ptr = new_tensor(weight, {N + 1}, ScalarType::Int), col_idx = row_ptr, values = row_ptr;
  with_packed_type(weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* dense = static_cast<const T*>(weight.const_data_ptr());
    std::vector<int64_t> counts(static_cast<size_t>(N));
    for_parts(N, K, [&](Range rows) { count_kept<T>(dense, kept, K, rows, counts.data()); });
    int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
    int64_t nnz = 0;
    ends[0] = 0;
    for (int64_t n = 0; n < N; ++n) {
      nnz += counts[static_cast<size_t>(n)];
      check(nnz <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 kept entries");
      ends[n + 1] = static_cast<int32_t>(nnz);
    }
    col_idx = new_tensor(weight, {nnz}, ScalarType::Int);
    values = new_tensor(weight, {nnz}, weight.scalar_type());
    int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
    T* packed = static_cast<T*>(values.mutable_data_ptr());
    for_parts(N, K, [&](Range rows) { fill_csr<T>(dense, kept, K, rows, ends, columns, packed); });
  });
  return {row_ptr, col_idx, values};
}

std::tuple<Tensor, Tensor, Tensor> pack_block_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                                  int64_t cols, int64_t block_rows) {
  check_tensor(values, "values", ScalarType::Float, 1);
  check(block_rows == 4 || block_rows == 8, "expected blocks of 4 or 8 rows, got ", block_rows);
  const CsrView<float> weight = validated_view<float>(row_ptr, col_idx, values, cols);
  check(weight.rows % block_rows == 0, "expected N that is a multiple of ", block_rows, ", got ", weight.rows);
  const int64_t num_blocks = weight.rows / block_rows;
  const int64_t entries_per_block = num_blocks == 0 ? 0 : weight.nnz / num_blocks;
  const Tensor block_ptr = new_tensor(row_ptr, {num_blocks + 1}, ScalarType::Int);
  int32_t* ends = block_ptr.mutable_data_ptr<int32_t>();
  for_parts(num_blocks, entries_per_block,
            [&](Range blocks) { count_block_csr<float>(weight, block_rows, blocks, ends); });
  const int64_t entries = running_sum(ends, num_blocks);  // no more than nnz
  const Tensor columns = new_tensor(row_ptr, {entries}, ScalarType::Int);
  const Tensor packed = new_tensor(values, {entries, block_rows}, ScalarType::Float);
  for_parts(num_blocks, entries_per_block, [&](Range blocks) {
    fill_block_csr<float>(weight, block_rows, blocks, ends, columns.mutable_data_ptr<int32_t>(),
                          packed.mutable_data_ptr<float>());
  });
  return {block_ptr, columns, packed};
}

// Entries of a block, and its rows once per panel.
int64_t work_of_block(const PanelView<float>& weight) {
  return weight.nnz / std::max<int64_t>(weight.num_blocks(), 1) + weight.block_rows * weight.num_panels();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pack_panel(const Tensor& row_ptr, const Tensor& col_idx,
                                                                      const Tensor& values, int64_t cols,
                                                                      int64_t block_rows, int64_t panel_cols) {
  check_tensor(values, "values", ScalarType::Float, 1);
  check(block_rows >= 1 && block_rows <= kMaxBlockRows, "expected block_rows in [1, ", kMaxBlockRows, "], got ",
        block_rows);
  check(panel_cols >= 1 && panel_cols <= kMaxPanelCols, "expected panel_cols in [1, ", kMaxPanelCols, "], got ",
        panel_cols);
  const CsrView<float> weight = validated_view<float>(row_ptr, col_idx, values, cols);
  PanelView<float> shape;
  shape.rows = weight.rows;
  shape.cols = weight.cols;
  shape.nnz = weight.nnz;
  shape.block_rows = block_rows;
  shape.panel_cols = panel_cols;
  const int64_t num_segments = shape.num_segments();
  const Tensor run_ptr = new_tensor(row_ptr, {num_segments + 1}, ScalarType::Int);
  const Tensor entry_ptr = new_tensor(row_ptr, {num_segments + 1}, ScalarType::Int);
  int32_t* runs_before = run_ptr.mutable_data_ptr<int32_t>();
  int32_t* entries_before = entry_ptr.mutable_data_ptr<int32_t>();
  for_parts(shape.num_blocks(), work_of_block(shape), [&](Range blocks) {
    count_panel<float>(weight, block_rows, panel_cols, blocks, runs_before, entries_before);
  });
  running_sum(entries_before, num_segments);
  const int64_t runs = running_sum(runs_before, num_segments);
  check(runs <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 runs; take wider panels");
  const Tensor run_row = new_tensor(row_ptr, {runs}, ScalarType::Byte);
  const Tensor run_length = new_tensor(row_ptr, {runs}, ScalarType::Byte);
  const Tensor panel_col = new_tensor(row_ptr, {weight.nnz}, ScalarType::Byte);
  const Tensor packed = torch::stable::empty_like(values);
  const PanelArrays<float> arrays{runs_before,
                                  entries_before,
                                  run_row.mutable_data_ptr<uint8_t>(),
                                  run_length.mutable_data_ptr<uint8_t>(),
                                  panel_col.mutable_data_ptr<uint8_t>(),
                                  packed.mutable_data_ptr<float>()};
  for_parts(shape.num_blocks(), work_of_block(shape),
            [&](Range blocks) { fill_panel<float>(weight, block_rows, panel_cols, blocks, arrays); });
  return {run_ptr, entry_ptr, run_row, run_length, panel_col, packed};
}

std::tuple<Tensor, Tensor, Tensor> unpack_panel(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const PanelView<float> view = panel_view(weight, sizes);
  const int64_t num_blocks = view.num_blocks(), work = work_of_block(view);
  const char* text = find_problem(num_blocks, work, [&](Range blocks) { return validate_panel(view, blocks); });
  if (text != nullptr) fail("invalid panel weight: ", text);
  check(view.entry_ptr[0] == 0 && view.entry_ptr[view.num_segments()] == view.nnz,
        "invalid panel weight: its segments must hold all entries");
  const Tensor row_ptr = new_tensor(weight[0], {view.rows + 1}, ScalarType::Int);
  const Tensor col_idx = new_tensor(weight[0], {view.nnz}, ScalarType::Int);
  const Tensor values = torch::stable::empty_like(weight[5]);
  int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
  int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
  float* unpacked = values.mutable_data_ptr<float>();
  for_parts(num_blocks, work, [&](Range blocks) { count_unpacked<float>(view, blocks, ends); });
  running_sum(ends, view.rows);
  for_parts(num_blocks, work,
            [&](Range blocks) { sparsecore::unpack_panel<float>(view, blocks, ends, columns, unpacked); });
  return {row_ptr, col_idx, values};
}

// Calls function(constant T) with the type that packing uses for a float dtype.
template <class Function>
void with_packed_float(ScalarType dtype, Function function) {
  if (dtype == ScalarType::Float) return function(float{});
  check(dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
        "expected float32, float16 or bfloat16 values, got ", dtype_name(dtype));
  function(uint16_t{});
}

// A block's masks, and its entries.
int64_t work_of_block(int64_t cols, int64_t nnz, int64_t num_blocks) {
  return cols + nnz / std::max<int64_t>(num_blocks, 1);
}

std::tuple<Tensor, Tensor, Tensor> pack_bitmap(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                               int64_t cols) {
  Tensor block_ptr = row_ptr, masks = row_ptr, packed = values;
  with_packed_float(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const CsrView<T> weight = validated_view<T>(row_ptr, col_idx, values, cols);
    const int64_t num_blocks = BitmapView{.rows = weight.rows}.num_blocks();
    block_ptr = new_tensor(row_ptr, {num_blocks + 1}, ScalarType::Int);
    masks = new_tensor(row_ptr, {num_blocks, cols}, ScalarType::Short);
    packed = new_tensor(values, {weight.nnz + kBitmapSlack}, values.scalar_type());
    const BitmapArrays<T> arrays{block_ptr.mutable_data_ptr<int32_t>(),
                                 static_cast<uint16_t*>(masks.mutable_data_ptr()),
                                 static_cast<T*>(packed.mutable_data_ptr())};
    arrays.block_ptr[0] = 0;
    std::fill_n(arrays.values + weight.nnz, kBitmapSlack, T(0));
    for_parts(num_blocks, work_of_block(cols, weight.nnz, num_blocks),
              [&](Range blocks) { fill_bitmap<T>(weight, blocks, arrays); });
  });
  return {block_ptr, masks, packed};
}

std::tuple<Tensor, Tensor, Tensor> unpack_bitmap(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const BitmapView view = bitmap_view(weight, sizes);
  const int64_t num_blocks = view.num_blocks(), work = work_of_block(view.cols, view.nnz, num_blocks);
  const char* text = find_problem(num_blocks, work, [&](Range blocks) { return validate_bitmap(view, blocks); });
  if (text == nullptr && (view.block_ptr[0] != 0 || view.block_ptr[num_blocks] != view.nnz)) {
    text = "block_ptr must rise from 0 to the number of values";
  }
  if (text != nullptr) fail("invalid bitmap weight: ", text);
  const Tensor row_ptr = new_tensor(weight[0], {view.rows + 1}, ScalarType::Int);
  const Tensor col_idx = new_tensor(weight[0], {view.nnz}, ScalarType::Int);
  const Tensor values = new_tensor(weight[2], {view.nnz}, weight[2].scalar_type());
  int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
  int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
  for_parts(num_blocks, work, [&](Range blocks) { count_unpacked(view, blocks, ends); });
  running_sum(ends, view.rows);
  with_packed_float(weight[2].scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* unpacked = static_cast<T*>(values.mutable_data_ptr());
    for_parts(num_blocks, work,
              [&](Range blocks) { sparsecore::unpack_bitmap<T>(view, blocks, ends, columns, unpacked); });
  });
  return {row_ptr, col_idx, values};
}

Tensor unpack_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  const Tensor dense = new_tensor(values, {std::max<int64_t>(row_ptr.numel() - 1, 0), cols}, values.scalar_type());
  with_packed_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const CsrView<T> view = validated_view<T>(row_ptr, col_idx, values, cols);
    T* out = static_cast<T*>(dense.mutable_data_ptr());
    for_parts(view.rows, cols, [&](Range rows) { sparsecore::unpack_csr<T>(view, rows, out); });
  });
  return dense;
}

std::tuple<Tensor, Tensor, Tensor> transpose_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                                 int64_t cols) {
  const Tensor row_ptr_t = new_tensor(row_ptr, {cols + 1}, ScalarType::Int);
  const Tensor col_idx_t = torch::stable::empty_like(col_idx), values_t = torch::stable::empty_like(values);
  with_packed_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    sparsecore::transpose_csr<T>(validated_view<T>(row_ptr, col_idx, values, cols),
                                 row_ptr_t.mutable_data_ptr<int32_t>(), col_idx_t.mutable_data_ptr<int32_t>(),
                                 static_cast<T*>(values_t.mutable_data_ptr()));
  });
  return {row_ptr_t, col_idx_t, values_t};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("pack_csr(Tensor weight, Tensor? mask=None) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def("unpack_csr(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> Tensor");
  m.def("transpose_csr(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> (Tensor, Tensor, Tensor)");
  m.def(
      "pack_block_csr(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int block_rows) -> "
      "(Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def(
      "pack_panel(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int block_rows, int panel_cols) -> "
      "(Tensor run_ptr, Tensor entry_ptr, Tensor run_row, Tensor run_length, Tensor panel_col, Tensor values)");
  m.def("unpack_panel(Tensor[] weight, int[] sizes) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def(
      "pack_bitmap(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> "
      "(Tensor block_ptr, Tensor masks, Tensor values)");
  m.def("unpack_bitmap(Tensor[] weight, int[] sizes) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("pack_csr", TORCH_BOX(&pack_csr));
  m.impl("unpack_csr", TORCH_BOX(&unpack_csr));
  m.impl("transpose_csr", TORCH_BOX(&transpose_csr));
  m.impl("pack_block_csr", TORCH_BOX(&pack_block_csr));
  m.impl("pack_panel", TORCH_BOX(&pack_panel));
  m.impl("unpack_panel", TORCH_BOX(&unpack_panel));
  m.impl("pack_bitmap", TORCH_BOX(&pack_bitmap));
  m.impl("unpack_bitmap", TORCH_BOX(&unpack_bitmap));
}

}  // namespace sparsecore::torch_binding
