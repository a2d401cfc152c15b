// torch.ops.sparsecore.spmm_csr on CUDA tensors: arguments in, pointers out, launch.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"

namespace sparsecore::torch_binding {
namespace {

// row_ptr int32 [N + 1], col_idx int32 [nnz], values [nnz] of 32 or 16 bits.
cuda::CsrArrays cuda_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, const Tensor& x,
                         int64_t cols) {
  cuda::CsrArrays weight;
  check(float_dtype(values.scalar_type(), weight.dtype), "expected float32, float16 or bfloat16 values, got ",
        dtype_name(values.scalar_type()));
  check(values.dim() == 1, "expected CSR values [nnz]; blocks of rows have no CUDA kernel, got shape ",
        shape_text(values), "; call unpack()");
  check_cuda_tensor(row_ptr, "row_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(col_idx, "col_idx", x, ScalarType::Int, 1);
  check_cuda_tensor(values, "values", x, values.scalar_type(), 1);
  check(row_ptr.numel() >= 1, "expected row_ptr with N + 1 entries, got none");
  check(col_idx.numel() == values.numel(), "expected as many col_idx as values, got ", col_idx.numel(), " and ",
        values.numel());
  check(cols <= std::numeric_limits<int32_t>::max(), "expected K < 2^31, got ", cols);
  weight.rows = row_ptr.numel() - 1;
  weight.cols = cols;
  weight.nnz = values.numel();
  weight.row_ptr = row_ptr.const_data_ptr<int32_t>();
  weight.col_idx = col_idx.const_data_ptr<int32_t>();
  weight.values = values.const_data_ptr();
  return weight;
}

Tensor spmm_csr(const Tensor& x_any, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const std::string& activation,
                const std::string& layout, const std::string& kernel) {
  check(kernel.empty(), "expected no kernel name on CUDA, got '", kernel, "'");
  const int64_t K = input_features(x_any, layout);
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::CsrArrays weight = cuda_csr(row_ptr, col_idx, values, x, K);
  const bool is_rows = layout == "rows";
  std::vector<int64_t> shape = shape_of(x);
  const size_t k_dim = is_rows ? shape.size() - 1 : 1;
  shape[k_dim] = weight.rows;
  const OnDevice device(x);
  const Tensor y = new_tensor(x, shape, x.scalar_type());
  Tensor kept = y;
  cuda::SpmmOutput out;
  out.y = y.mutable_data_ptr();
  out.residual = cuda_residual(residual, y, kept);
  out.bias = cuda_bias(bias, x, weight.rows);
  out.activation = make_epilogue(std::nullopt, activation, weight.rows).activation;
  if (y.numel() == 0) return y;
  const int64_t batch = is_rows ? 1 : shape[0];
  const int64_t columns = is_rows ? product(shape, 0, k_dim) : product(shape, 2, shape.size());
  check_launch(cuda::spmm_csr(weight, is_rows ? Layout::kRows : Layout::kColumns, dtype, x.const_data_ptr(), batch,
                              columns, out, device.stream()));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("spmm_csr", TORCH_BOX(&spmm_csr)); }

}  // namespace sparsecore::torch_binding
