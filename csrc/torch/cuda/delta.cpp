// torch.ops.sparsecore.spmm_delta on CUDA tensors.
#include "torch/delta.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"

namespace sparsecore::torch_binding {
namespace {

cuda::DeltaArrays delta_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes, const Tensor& x) {
  const DeltaTensors tensors = delta_tensors(weight, sizes);
  const ScalarType type = weight[2].scalar_type();
  check_cuda_tensor(weight[0], "quad_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[1], "codes", x, ScalarType::Byte, 1);
  check_cuda_tensor(weight[2], "values", x, type, 1);
  check_cuda_tensor(weight[3], "block_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[4], "scale", x, ScalarType::Float, 1);
  check_weight_dtype(type == ScalarType::Char ? std::nullopt : std::optional(type), x);
  cuda::DeltaArrays arrays;
  arrays.rows = tensors.shape.rows;
  arrays.cols = tensors.shape.cols;
  arrays.quad_ptr = weight[0].const_data_ptr<int32_t>();
  arrays.codes = weight[1].const_data_ptr<uint8_t>();
  arrays.values = weight[2].const_data_ptr();
  arrays.quads = tensors.quads;
  arrays.block_ptr = weight[3].const_data_ptr<int32_t>();
  arrays.num_blocks = tensors.num_blocks;
  if (type == ScalarType::Char) arrays.scale = weight[4].const_data_ptr<float>();
  check_aligned(arrays.codes, "codes", kDeltaQuad);
  check_aligned(arrays.values, "values", kDeltaQuad * (type == ScalarType::Char ? 1 : 2));
  return arrays;
}

Tensor spmm_delta(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  const std::string& activation) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::DeltaArrays arrays = delta_arrays(weight, sizes, x);
  const OnDevice device(x);
  CudaOutput y(x, arrays.rows, arrays.cols, bias, residual, activation);
  if (y.is_empty()) return y.tensor();
  const Tensor partial = new_tensor(x, {cuda::spmm_delta_floats(arrays, y.M())}, ScalarType::Float);
  check_launch(cuda::spmm_delta(arrays, dtype, x.const_data_ptr(), y.M(), partial.mutable_data_ptr<float>(), y.output(),
                                device.stream()));
  return y.tensor();
}

// x: only for the dtype and the device of the result.
Tensor expand_delta(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::DeltaArrays arrays = delta_arrays(weight, sizes, x);
  const OnDevice device(x);
  const Tensor dense = new_tensor(x, {arrays.rows, arrays.cols}, x.scalar_type());
  check_launch(cuda::expand_delta(arrays, dtype, dense.mutable_data_ptr(), device.stream()));
  return dense;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CUDA, m) {
  m.impl("spmm_delta", TORCH_BOX(&spmm_delta));
  m.impl("expand_delta", TORCH_BOX(&expand_delta));
}

}  // namespace sparsecore::torch_binding
