// torch.ops.sparsecore.spmm_fragment and expand_fragment on CUDA tensors.
#include "torch/fragment.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"

namespace sparsecore::torch_binding {
namespace {

// is_int8: x is int8, else of 16 bits.
cuda::FragmentArrays fragment_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                                     const Tensor& x, bool is_int8 = false) {
  const FragmentTensors tensors = fragment_tensors(weight, sizes);
  check_cuda_tensor(weight[0], "tile_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[1], "blob", x, ScalarType::Byte, 1);
  check_cuda_tensor(weight[2], "block_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[3], "row_block", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[4], "scale", x, ScalarType::Float, 1);
  std::optional<ScalarType> type;
  if (tensors.float_type != 0) type = tensors.float_type == 1 ? ScalarType::Half : ScalarType::BFloat16;
  if (is_int8) {
    check(tensors.shape.value_bits == 8, "expected int8 values for int8 x, got ", tensors.shape.value_bits, " bits");
  } else {
    check_weight_dtype(type, x);
  }
  cuda::FragmentArrays arrays;
  arrays.rows = tensors.shape.rows;
  arrays.cols = tensors.shape.cols;
  arrays.value_bits = tensors.shape.value_bits;
  arrays.stage_bytes = static_cast<int>(tensors.max_tile_bytes);
  arrays.tile_ptr = weight[0].const_data_ptr<int32_t>();
  arrays.blob = weight[1].const_data_ptr<uint8_t>();
  arrays.blob_bytes = weight[1].numel();
  arrays.block_ptr = weight[2].const_data_ptr<int32_t>();
  arrays.row_block = weight[3].const_data_ptr<int32_t>();
  arrays.num_blocks = tensors.num_blocks;
  if (arrays.value_bits == 8) arrays.scale = weight[4].const_data_ptr<float>();
  check_aligned(arrays.blob, "blob", kFragmentUnit);
  return arrays;
}

Tensor spmm_fragment(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::string& activation) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::FragmentArrays arrays = fragment_arrays(weight, sizes, x);
  const OnDevice device(x);
  CudaOutput y(x, arrays.rows, arrays.cols, bias, residual, activation);
  if (y.is_empty()) return y.tensor();
  const Tensor partial = new_tensor(x, {cuda::spmm_fragment_floats(arrays, y.M())}, ScalarType::Float);
  check_launch(cuda::spmm_fragment(arrays, dtype, x.const_data_ptr(), y.M(), partial.mutable_data_ptr<float>(),
                                   y.output(), device.stream()));
  return y.tensor();
}

Tensor spmm_fragment_int8(const Tensor& x_any, const Tensor& x_scale, const std::vector<Tensor>& weight,
                          const std::vector<int64_t>& sizes, const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& residual, const std::string& activation,
                          const std::string& dtype_text) {
  const Tensor x = int8_activations(x_any, x_scale);
  const cuda::FragmentArrays arrays = fragment_arrays(weight, sizes, x, true);
  Dtype dtype;
  const ScalarType type = output_dtype(dtype_text, dtype);
  const OnDevice device(x);
  CudaOutput y(x, type, arrays.rows, arrays.cols, bias, residual, activation);
  if (y.is_empty()) return y.tensor();
  const Tensor partial = new_tensor(x, {cuda::spmm_fragment_floats(arrays, y.M())}, ScalarType::Int);
  check_launch(cuda::spmm_fragment_int8(arrays, dtype, x.const_data_ptr<int8_t>(), x_scale.const_data_ptr<float>(),
                                        y.M(), partial.mutable_data_ptr<int32_t>(), y.output(), device.stream()));
  return y.tensor();
}

Tensor linear_int8_rows(const Tensor& x_any, const Tensor& x_scale, const Tensor& weight, const Tensor& scale,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        const std::string& activation, const std::string& dtype_text) {
  const Tensor x = int8_activations(x_any, x_scale);
  check_cuda_tensor(weight, "weight", x, ScalarType::Char, 2);
  check_cuda_tensor(scale, "scale", x, ScalarType::Float, 1);
  const int64_t N = weight.size(0), K = weight.size(1);
  check(scale.numel() == N, "expected scale of shape [", N, "], got ", shape_text(scale));
  Dtype dtype;
  const ScalarType type = output_dtype(dtype_text, dtype);
  const OnDevice device(x);
  CudaOutput y(x, type, N, K, bias, residual, activation);
  if (y.is_empty()) return y.tensor();
  check_launch(cuda::linear_int8({N, K, weight.const_data_ptr<int8_t>(), scale.const_data_ptr<float>()}, dtype,
                                 x.const_data_ptr<int8_t>(), x_scale.const_data_ptr<float>(), y.M(), y.output(),
                                 device.stream()));
  return y.tensor();
}

// x: only for the dtype and the device of the result.
Tensor expand_fragment(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::FragmentArrays arrays = fragment_arrays(weight, sizes, x);
  const OnDevice device(x);
  const Tensor dense = new_tensor(x, {arrays.rows, arrays.cols}, x.scalar_type());
  check_launch(cuda::expand_fragment(arrays, dtype, dense.mutable_data_ptr(), device.stream()));
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_fragment", TORCH_BOX(&spmm_fragment));
  m.impl("spmm_fragment_int8", TORCH_BOX(&spmm_fragment_int8));
  m.impl("linear_int8_rows", TORCH_BOX(&linear_int8_rows));
  m.impl("expand_fragment", TORCH_BOX(&expand_fragment));
}

}  // namespace sparsecore::torch_binding
