// What the launches share.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace sparsecore::cuda {

inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of(int64_t x, int64_t y) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(x, 1, kMaxGridX)),
              static_cast<unsigned>(std::clamp<int64_t>(y, 1, kMaxGridY)));
}

// Of the current device; 0 if there is none.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// Calls function(number type) with the type of a dtype.
template <class Function>
auto with_number(Dtype dtype, Function function) {
  switch (dtype) {
    case Dtype::kFloat16:
      return function(Half{});
    case Dtype::kBFloat16:
      return function(Brain{});
    default:
      return function(Float32{});
  }
}

// The same for what int8 products are written as.
template <class Function>
void with_output(const Int8Output& out, Function function) {
  if (out.is_int8) return function(Integer8{});
  with_number(out.dtype, function);
}

// The same for float16 and bfloat16.
template <class Function>
void with_16_bits(Dtype dtype, Function function) {
  if (dtype == Dtype::kBFloat16) return function(Brain{});
  function(Half{});
}

}  // namespace sparsecore::cuda
