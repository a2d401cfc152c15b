// What operations on CUDA tensors check, and where they run: on x's device and its current stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "torch/checks.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {

// Makes a device the current one for as long as this lives.
class __attribute__((visibility("hidden"))) OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}

  cuda::Stream stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// A contiguous tensor of that dtype on x's device; the error names it. dim < 0: any.
void check_cuda_tensor(const Tensor& tensor, const char* name, const Tensor& x, ScalarType dtype, int64_t dim);

// x, contiguous, if it is on a CUDA device.
Tensor on_cuda(const Tensor& x);

// Activations as float kernels take them, and their dtype.
Tensor cuda_activations(const Tensor& x, Dtype& dtype);

// What is added to y: contiguous, of its shape, dtype and device, or null. `kept` owns it.
const void* cuda_residual(const std::optional<Tensor>& residual, const Tensor& y, Tensor& kept);

// float32 [rows] on x's device, or null.
const float* cuda_bias(const std::optional<Tensor>& bias, const Tensor& x, int64_t rows);

// x is float16 or bfloat16, and of the weight's dtype if that is one of both.
void check_weight_dtype(std::optional<ScalarType> weight, const Tensor& x);

inline void check_aligned(const void* pointer, const char* name, uintptr_t bytes) {
  check(reinterpret_cast<uintptr_t>(pointer) % bytes == 0, "expected ", name, " aligned to ", bytes,
        " bytes; make it with .clone()");
}

// y [..., N] of x [..., K], and what is added to it; x is contiguous and its device the current one.
class __attribute__((visibility("hidden"))) CudaOutput {
 public:
  CudaOutput(const Tensor& x, int64_t N, int64_t K, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& residual, const std::string& activation)
      : CudaOutput(x, x.scalar_type(), N, K, bias, residual, activation) {}
  // With y of another dtype.
  CudaOutput(const Tensor& x, ScalarType dtype, int64_t N, int64_t K, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& residual, const std::string& activation);

  const Tensor& tensor() const { return y_; }
  const cuda::SpmmOutput& output() const { return output_; }
  int64_t M() const { return M_; }
  bool is_empty() const { return y_.numel() == 0; }

 private:
  int64_t M_ = 0;
  Tensor y_, residual_;
  cuda::SpmmOutput output_;
};

inline void check_launch(const char* problem) {
  check(problem == nullptr, "the CUDA kernel was not launched: ", problem);
}

}  // namespace sparsecore::torch_binding
