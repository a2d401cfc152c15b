// Making tensors and reading their shapes through LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/checks.h"
#include "torch/recording.h"

namespace sparsecore::torch_binding {

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// The result of an operation.
inline Tensor new_output(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  if (Recording* recording = active_recording()) {
    if (std::optional<Tensor> out = recording->take_output(shape, dtype)) return *out;
  }
  return new_tensor(like, shape, dtype);
}

inline int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  int64_t result = 1;
  for (size_t d = begin; d < end; ++d) result *= shape[d];
  return result;
}

inline Tensor on_cpu(const Tensor& x) {
  check(x.is_cpu(), "expected x on the CPU; there is no CUDA kernel for this operation yet");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

inline Tensor float_input(const Tensor& x) {
  check(x.scalar_type() == ScalarType::Float, "expected float32 x; convert it with .float()");
  return on_cpu(x);
}

// Activations of any dtype that float kernels take, and which one.
inline Tensor activations(const Tensor& x, Dtype& dtype) {
  check(float_dtype(x.scalar_type(), dtype), "expected float32, float16 or bfloat16 x; convert it with .float()");
  return on_cpu(x);
}

// K, after x and layout are known to have one.
inline int64_t input_features(const Tensor& x, const std::string& layout) {
  check(layout == "rows" || layout == "columns", "expected layout rows or columns, got '", layout, "'");
  const bool is_rows = layout == "rows";
  check(x.dim() >= (is_rows ? 1 : 2), "expected x [..., K] for rows or [batch, K, ...] for columns, got shape ",
        shape_text(x));
  return x.size(is_rows ? x.dim() - 1 : 1);
}

// What is added to y: contiguous, of its shape and dtype, or null. `kept` owns it.
inline const void* residual_input(const std::optional<Tensor>& residual, const Tensor& y, Tensor& kept) {
  if (!residual) return nullptr;
  check(residual->is_cpu(), "expected residual on the CPU; move it with .cpu()");
  check(residual->scalar_type() == y.scalar_type(), "expected a residual of the output's dtype, ",
        dtype_name(y.scalar_type()), ", got ", dtype_name(residual->scalar_type()));
  check(shape_of(*residual) == shape_of(y), "expected a residual of the output's shape ", shape_text(y), ", got ",
        shape_text(*residual));
  kept = on_cpu(*residual);
  return kept.const_data_ptr();
}

}  // namespace sparsecore::torch_binding
