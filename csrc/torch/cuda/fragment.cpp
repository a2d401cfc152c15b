// torch.ops.sparsecore.spmm_fragment and expand_fragment on CUDA tensors.
#include "torch/fragment.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/cuda/checks.h"

namespace sparsecore::torch_binding {
namespace {

cuda::FragmentArrays fragment_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                                     const Tensor& x) {
  const FragmentTensors tensors = fragment_tensors(weight, sizes);
  check_cuda_tensor(weight[0], "tile_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[1], "blob", x, ScalarType::Byte, 1);
  check_cuda_tensor(weight[2], "block_ptr", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[3], "row_block", x, ScalarType::Int, 1);
  check_cuda_tensor(weight[4], "scale", x, ScalarType::Float, 1);
  const ScalarType type = x.scalar_type();
  check(type == ScalarType::Half || type == ScalarType::BFloat16,
        "expected float16 or bfloat16 x for a fragment weight, got ", dtype_name(type));
  check(tensors.float_type == 0 || (tensors.float_type == 1) == (type == ScalarType::Half),
        "expected x of the weight's dtype, ", tensors.float_type == 1 ? "float16" : "bfloat16", ", got ",
        dtype_name(type));
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
  check(reinterpret_cast<uintptr_t>(arrays.blob) % kFragmentUnit == 0,
        "expected a blob aligned to 16 bytes; make it with .clone()");
  return arrays;
}

Tensor spmm_fragment(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::string& activation) {
  const int64_t K = input_features(x_any, "rows");
  Dtype dtype;
  const Tensor x = cuda_activations(x_any, dtype);
  const cuda::FragmentArrays arrays = fragment_arrays(weight, sizes, x);
  check(K == arrays.cols, "expected x with K = ", arrays.cols, ", got shape ", shape_text(x));
  std::vector<int64_t> shape = shape_of(x);
  const int64_t M = product(shape, 0, shape.size() - 1);
  shape.back() = arrays.rows;
  const OnDevice device(x);
  const Tensor y = new_tensor(x, shape, x.scalar_type());
  Tensor kept = y;
  cuda::SpmmOutput out;
  out.y = y.mutable_data_ptr();
  out.residual = cuda_residual(residual, y, kept);
  out.bias = cuda_bias(bias, x, arrays.rows);
  out.activation = make_epilogue(std::nullopt, activation, arrays.rows).activation;
  if (y.numel() == 0) return y;
  const Tensor partial = new_tensor(x, {cuda::spmm_fragment_floats(arrays, M)}, ScalarType::Float);
  check_launch(cuda::spmm_fragment(arrays, dtype, x.const_data_ptr(), M, partial.mutable_data_ptr<float>(), out,
                                   device.stream()));
  return y;
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
  m.impl("expand_fragment", TORCH_BOX(&expand_fragment));
}

}  // namespace sparsecore::torch_binding
