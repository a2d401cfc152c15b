#include "torch/cuda/checks.h"

namespace sparsecore::torch_binding {

void check_cuda_tensor(const Tensor& tensor, const char* name, const Tensor& x, ScalarType dtype, int64_t dim) {
  check(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), "expected ", name,
        " on the device of x, cuda:", x.get_device_index(), "; move it with .to(x.device)");
  check(tensor.scalar_type() == dtype, "expected ", dtype_name(dtype), " ", name, ", got ",
        dtype_name(tensor.scalar_type()), "; convert it with .to(torch.", dtype_name(dtype), ")");
  check(dim < 0 || tensor.dim() == dim, "expected ", name, " with ", dim, " dimensions, got shape ",
        shape_text(tensor));
  check(tensor.is_contiguous(), "expected contiguous ", name, "; call .contiguous()");
}

Tensor cuda_activations(const Tensor& x, Dtype& dtype) {
  check(float_dtype(x.scalar_type(), dtype), "expected float32, float16 or bfloat16 x; convert it with .float()");
  check(x.is_cuda(), "expected x on a CUDA device; move it with .cuda()");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

const void* cuda_residual(const std::optional<Tensor>& residual, const Tensor& y, Tensor& kept) {
  if (!residual) return nullptr;
  kept = residual->is_contiguous() ? *residual : torch::stable::contiguous(*residual);
  check_cuda_tensor(kept, "residual", y, y.scalar_type(), -1);
  check(shape_of(kept) == shape_of(y), "expected a residual of the output's shape ", shape_text(y), ", got ",
        shape_text(kept));
  return kept.const_data_ptr();
}

const float* cuda_bias(const std::optional<Tensor>& bias, const Tensor& x, int64_t rows) {
  if (!bias) return nullptr;
  check_cuda_tensor(*bias, "bias", x, ScalarType::Float, 1);
  check(bias->numel() == rows, "expected bias of shape [", rows, "], got ", shape_text(*bias));
  return bias->const_data_ptr<float>();
}

}  // namespace sparsecore::torch_binding
