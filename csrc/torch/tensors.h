// Making tensors and reading their shapes through LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "torch/checks.h"

namespace sparsecore::torch_binding {

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  return std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end());
}

inline int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  int64_t result = 1;
  for (size_t d = begin; d < end; ++d) result *= shape[d];
  return result;
}

inline Tensor float_input(const Tensor& x) {
  check(x.is_cpu(), "expected x on the CPU; there is no CUDA kernel for this operation yet");
  check(x.scalar_type() == ScalarType::Float, "expected float32 x; convert it with .float()");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

}  // namespace sparsecore::torch_binding
