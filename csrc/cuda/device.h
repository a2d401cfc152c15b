// What kernels use of a GPU, by plain names: device_ptx.h where nvcc compiles, and in the tests an emulation that runs
// the same kernel text on the CPU (tests/cpp/cuda/emulation.h), where no GPU is.
//
// Kernels are written for warps of 32 lanes; every function marked "warp" must be called by all of them together.
#pragma once

#if defined(__CUDACC__)
#include "cuda/device_ptx.h"
#else
#include "cuda/emulation.h"
#endif

namespace sparsecore::cuda {

inline constexpr int kWarp = 32;

// Numbers of activations and values: exact to float32, to nearest even back.
struct Float32 {
  using Storage = float;
  static SPARSECORE_DEVICE float widen(float x) { return x; }
  static SPARSECORE_DEVICE float narrow(float x) { return x; }
};
struct Half {
  using Storage = uint16_t;
  static SPARSECORE_DEVICE float widen(uint16_t x) { return half_to_float(x); }
  static SPARSECORE_DEVICE uint16_t narrow(float x) { return float_to_half(x); }
  static SPARSECORE_DEVICE void multiply_add(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_add_half(acc, a, b0, b1);
  }
};
struct Brain {
  using Storage = uint16_t;
  static SPARSECORE_DEVICE float widen(uint16_t x) { return bits_to_float(uint32_t(x) << 16); }
  static SPARSECORE_DEVICE uint16_t narrow(float x) { return float_to_brain(x); }
  static SPARSECORE_DEVICE void multiply_add(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_add_brain(acc, a, b0, b1);
  }
};

// Offsets that were read from memory, kept inside [0, size].
SPARSECORE_DEVICE int64_t clamp_index(int64_t i, int64_t size) { return i < 0 ? 0 : i > size ? size : i; }

SPARSECORE_DEVICE float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += shuffle_xor(x, step);
  return x;
}

}  // namespace sparsecore::cuda
