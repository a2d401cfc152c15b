// torch.ops.sparsecore.linear_int8 on CUDA tensors: quantize the activations, then multiply.
#include "torch/int8.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"
#include "torch/cuda/fragment.h"

namespace sparsecore::torch_binding {
namespace {

// An int8 weight in one of the formats that CUDA kernels take.
struct Int8Weight {
  int64_t rows = 0, cols = 0;
  std::optional<cuda::Int8Arrays> dense;
  cuda::FragmentArrays sparse;
};

Int8Weight int8_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes, const std::string& format,
                       const Tensor& scale, const Tensor& x) {
  Int8Weight weight;
  check_cuda_tensor(scale, "scale", x, ScalarType::Float, 1);
  if (format == "rows") {
    check(tensors.size() == 1 && sizes.size() >= 2, "expected an int8 weight of 1 tensor with its sizes");
    check_cuda_tensor(tensors[0], "weight", x, ScalarType::Char, 2);
    weight.rows = tensors[0].size(0);
    weight.cols = tensors[0].size(1);
    check(sizes[0] == weight.rows && sizes[1] == weight.cols, "expected a weight [", sizes[0], ", ", sizes[1],
          "], got ", shape_text(tensors[0]));
    weight.dense = {weight.rows, weight.cols, tensors[0].const_data_ptr<int8_t>(), scale.const_data_ptr<float>()};
  } else {
    check(format == "fragment", "expected a weight packed for CUDA, rows or fragment, got '", format,
          "'; move the layer with .to('cuda')");
    std::vector<Tensor> all = tensors;
    all.push_back(scale);
    weight.sparse = fragment_arrays(all, sizes, x);
    check(weight.sparse.value_bits == 8, "expected int8 values for int8 activations, got ", weight.sparse.value_bits,
          " bits");
    weight.rows = weight.sparse.rows;
    weight.cols = weight.sparse.cols;
  }
  check(scale.numel() == weight.rows, "expected scale of shape [", weight.rows, "], got ", shape_text(scale));
  check(weight.cols <= kMaxInt8K, "expected K <= ", kMaxInt8K, " so that int32 sums are exact, got ", weight.cols);
  return weight;
}

// x as integers; `bytes` and `scales` own what is new. x's device is the current one.
cuda::Int8Activations quantized(const Tensor& x, int64_t K, const Quantization& how, cuda::Stream stream, Tensor& bytes,
                                Tensor& scales) {
  const float* channel_inverse = nullptr;
  if (how.channel_inverse) {
    check_cuda_tensor(*how.channel_inverse, "x_channel_inverse", x, ScalarType::Float, 1);
    check(how.channel_inverse->numel() == K, "expected x_channel_inverse of shape [", K, "], got ",
          shape_text(*how.channel_inverse));
    channel_inverse = how.channel_inverse->const_data_ptr<float>();
  }
  const std::vector<int64_t> shape = shape_of(x);
  cuda::Int8Activations result;
  result.M = product(shape, 0, shape.size() - 1);
  result.scale = static_cast<float>(how.scale.value_or(1.0));
  result.zero_point = static_cast<int32_t>(how.zero_point);
  if (x.scalar_type() == ScalarType::Char) {
    result.x = x.const_data_ptr<int8_t>();
    return result;
  }
  bytes = new_tensor(x, {result.M, K}, ScalarType::Char);
  result.x = bytes.const_data_ptr<int8_t>();
  cuda::QuantizeRows args{result.M,
                          K,
                          dtype_of(x.scalar_type()),
                          x.const_data_ptr(),
                          channel_inverse,
                          !how.scale,
                          result.scale,
                          result.zero_point,
                          bytes.mutable_data_ptr<int8_t>()};
  if (!how.scale) {
    scales = new_tensor(x, {result.M}, ScalarType::Float);
    args.scales = scales.mutable_data_ptr<float>();
    result.scales = args.scales;
  }
  check_launch(cuda::quantize_rows(args, stream));
  return result;
}

Tensor linear_int8(const Tensor& x_any, const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes,
                   const std::string& format, const Tensor& scale, const Tensor& weight_sum,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                   const std::optional<double>& x_scale, int64_t x_zero_point,
                   const std::optional<Tensor>& x_channel_inverse, const std::string& activation,
                   const std::optional<double>& y_scale, int64_t y_zero_point, const std::string& kernel) {
  check(kernel.empty(), "expected no kernel name on CUDA, got '", kernel, "'");
  check_int8_input(x_any);
  const Tensor x = on_cuda(x_any);
  const Int8Weight weight = int8_weight(tensors, sizes, format, scale, x);
  check_cuda_tensor(weight_sum, "weight_sum", x, ScalarType::Int, 1);
  check(weight_sum.numel() == weight.rows, "expected weight_sum of shape [", weight.rows, "], got ",
        shape_text(weight_sum));
  const Quantization how{x_scale, x_zero_point, x_channel_inverse};
  how.check_for(x);
  const Int8OutputSettings outputs{y_scale, y_zero_point};
  check(!residual || !outputs.is_int8(), "expected no residual with int8 outputs");

  const OnDevice device(x);
  const CudaOutput y(x, outputs.dtype(x.scalar_type()), weight.rows, weight.cols, bias, residual, activation);
  cuda::Int8Output out{y.output()};
  out.dtype = dtype_of(y.tensor().scalar_type());
  out.is_int8 = outputs.is_int8();
  if (out.is_int8) {
    out.inverse_scale = outputs.inverse_scale();
    out.zero_point = static_cast<int32_t>(y_zero_point);
  }
  if (y.is_empty()) return y.tensor();
  Tensor bytes = x, scales = x;
  cuda::Int8Activations input = quantized(x, weight.cols, how, device.stream(), bytes, scales);
  input.weight_sum = weight_sum.const_data_ptr<int32_t>();
  if (weight.dense) {
    check_launch(cuda::linear_int8(*weight.dense, input, out, device.stream()));
  } else {
    const Tensor partial = new_tensor(x, {cuda::spmm_fragment_floats(weight.sparse, input.M)}, ScalarType::Int);
    check_launch(
        cuda::spmm_fragment_int8(weight.sparse, input, partial.mutable_data_ptr<int32_t>(), out, device.stream()));
  }
  return y.tensor();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) { m.impl("linear_int8", TORCH_BOX(&linear_int8)); }

}  // namespace sparsecore::torch_binding
