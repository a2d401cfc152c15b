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

Tensor on_cuda(const Tensor& x) {
  check(x.is_cuda(), "expected x on a CUDA device; move it with .cuda()");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

Tensor cuda_activations(const Tensor& x, Dtype& dtype) {
  check(float_dtype(x.scalar_type(), dtype), "expected float32, float16 or bfloat16 x; convert it with .float()");
  return on_cuda(x);
}

const void* cuda_residual(const std::optional<Tensor>& residual, const Tensor& y, Tensor& kept) {
  if (!residual) return nullptr;
  kept = residual->is_contiguous() ? *residual : torch::stable::contiguous(*residual);
  check_cuda_tensor(kept, "residual", y, y.scalar_type(), -1);
  check(shape_of(kept) == shape_of(y), "expected a residual of the output's shape ", shape_text(y), ", got ",
        shape_text(kept));
  return kept.const_data_ptr();
}

void check_weight_dtype(std::optional<ScalarType> weight, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  check(type == ScalarType::Half || type == ScalarType::BFloat16,
        "expected float16 or bfloat16 x for a weight that is packed for CUDA, got ", dtype_name(type));
  check(!weight || *weight == type, "expected x of the weight's dtype, ", weight ? dtype_name(*weight) : "", ", got ",
        dtype_name(type));
}

namespace {

Tensor new_output(const Tensor& x, ScalarType dtype, int64_t N, int64_t K) {
  check(input_features(x, "rows") == K, "expected x with K = ", K, ", got shape ", shape_text(x));
  std::vector<int64_t> shape = shape_of(x);
  shape.back() = N;
  return new_tensor(x, shape, dtype);
}

}  // namespace

CudaOutput::CudaOutput(const Tensor& x, ScalarType dtype, int64_t N, int64_t K, const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& residual, const std::string& activation)
    : y_(new_output(x, dtype, N, K)), residual_(y_) {
  const std::vector<int64_t> shape = shape_of(y_);
  M_ = product(shape, 0, shape.size() - 1);
  output_.y = y_.mutable_data_ptr();
  output_.residual = cuda_residual(residual, y_, residual_);
  output_.bias = cuda_bias(bias, x, N);
  output_.activation = make_epilogue(std::nullopt, activation, N).activation;
}

const float* cuda_bias(const std::optional<Tensor>& bias, const Tensor& x, int64_t rows) {
  if (!bias) return nullptr;
  check_cuda_tensor(*bias, "bias", x, ScalarType::Float, 1);
  check(bias->numel() == rows, "expected bias of shape [", rows, "], got ", shape_text(*bias));
  return bias->const_data_ptr<float>();
}

}  // namespace sparsecore::torch_binding
