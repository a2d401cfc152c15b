// What every operation checks about its tensors, and how it runs a kernel on torch's threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparsecore/kernel.h"
#include "sparsecore/views.h"

namespace sparsecore::torch_binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Unlike STD_TORCH_CHECK the message has no source location in it: it is for the user of the Python package.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error("sparsecore: " + text.str());
}
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    fail(parts...);
  }
}

const char* dtype_name(ScalarType dtype);
std::string shape_text(const Tensor& tensor);

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  return std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end());
}

// Whether float kernels take numbers of this type, and as which dtype.
bool float_dtype(ScalarType type, Dtype& dtype);

// A contiguous CPU tensor of that dtype; the error names it.
void check_tensor(const Tensor& tensor, const char* name, ScalarType dtype, int64_t dim);

// row_ptr int32 [N + 1], col_idx int32 [nnz], values T [nnz]. Index contents are checked by run_kernel().
template <class T>
CsrView<T> csr_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols);

// The same with values [nnz, block_rows]: CSR of blocks of rows. N is block_rows times the rows of row_ptr.
BlockCsrView<float> block_csr_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols);

// Tensors and sizes of the panel format as Python's PanelWeight holds them, in this order: run_ptr and entry_ptr
// int32, run_row, run_length and panel_col uint8, values float32; N, K, block_rows, panel_cols.
PanelView<float> panel_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

// Tensors and sizes of the bitmap format as Python's BitmapWeight holds them, in this order: block_ptr int32, masks
// int16 (their bits), values float32, bfloat16 or float16; N, K.
BitmapView bitmap_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

// Tensors and sizes of bit planes as Python's PlanesWeight holds them, in this order: words int32, scale float32; N, K.
PlanesView planes_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

// "relu" and so on; bias float32 [N] or none.
Epilogue make_epilogue(const std::optional<Tensor>& bias, const std::string& activation, int64_t rows);

// A vector of one float32 per output row.
const float* row_vector(const Tensor& tensor, const char* name, int64_t rows);

}  // namespace sparsecore::torch_binding
