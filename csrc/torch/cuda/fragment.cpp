// torch.ops.sparsecore.spmm_fragment and expand_fragment on CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"
#include "torch/cuda/fragment.h"

namespace sparsecore::torch_binding {

cuda::FragmentArrays fragment_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                                     const Tensor& x) {
  const FragmentTensors tensors = fragment_tensors(weight, sizes);
  check_cuda_tensor(weight[0], "tile_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[1], "blob", x, ScalarType::Byte, 1);
  check_cuda_tensor(weight[2], "block_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[3], "row_block", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[4], "scale", x, ScalarType::Float, 1);
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

namespace {

// For float activations: 16-bit values are of their dtype.
cuda::FragmentArrays float_fragment_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                                           const Tensor& x) {
  const cuda::FragmentArrays arrays = fragment_arrays(weight, sizes, x);
  const int64_t type = sizes[4];
  check_weight_dtype(type == 0   ? std::nullopt
                     : type == 1 ? std::optional(ScalarType::Half)
                                 : std::optional(ScalarType::BFloat16),
                     x);
  return arrays;
}

Tensor spmm_fragment(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::string& activation) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::FragmentArrays arrays = float_fragment_arrays(weight, sizes, x);
  const OnDevice device(x);
  CudaOutput y(x, arrays.rows, arrays.cols, bias, residual, activation);
  if (y.is_empty()) return y.tensor();
  const Tensor partial = new_tensor(x, {cuda::spmm_fragment_floats(arrays, y.M())}, ScalarType::Float);
  check_launch(cuda::spmm_fragment(arrays, dtype, x.const_data_ptr(), y.M(), partial.mutable_data_ptr<float>(),
                                   y.output(), device.stream()));
  return y.tensor();
}

// x: only for the dtype and the device of the result.
Tensor expand_fragment(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::FragmentArrays arrays = float_fragment_arrays(weight, sizes, x);
  const OnDevice device(x);
  const Tensor dense = new_tensor(x, {arrays.rows, arrays.cols}, x.scalar_type());
  check_launch(cuda::expand_fragment(arrays, dtype, dense.mutable_data_ptr(), device.stream()));
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_fragment", TORCH_BOX(&spmm_fragment));
  m.impl("expand_fragment", TORCH_BOX(&expand_fragment));
}

}  // namespace sparsecore::torch_binding
