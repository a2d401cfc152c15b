// Float activations to int8 with a scale for each row or one for all. The algorithm text of quantize_rows.cu.
//
// A block takes a row: first its largest absolute value, then, mostly from the caches, its numbers again.
#pragma once

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace sparsecore::cuda {

inline constexpr int kQuantizeThreads = 256;
// 127 steps below the smallest normal number would be a subnormal or zero scale: such rows count as zero.
inline constexpr float kLeastMaximum = 127.0f * 1.17549435e-38f;

// The larger one, or NaN if one of them is.
SPARSECORE_DEVICE float larger_or_nan(float a, float b) { return a != a || a > b ? a : b; }

// larger_or_nan() over a block's threads; shared: a float for each warp.
SPARSECORE_DEVICE float block_maximum(float x, float* shared) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = larger_or_nan(x, shuffle_xor(x, step));
  if (thread_index() % kWarp == 0) shared[thread_index() / kWarp] = x;
  sync_block();
  for (int warp = 0; warp < block_threads() / kWarp; ++warp) x = larger_or_nan(x, shared[warp]);
  return x;
}

// block_x: row. Shared memory: a float for each warp.
template <class X>
SPARSECORE_KERNEL(kQuantizeThreads, 4)
quantize_rows_kernel(QuantizeRows args) {
  using T = typename X::Storage;
  const T* x = static_cast<const T*>(args.x) + block_x() * args.K;
  const auto number = [&](int64_t k) {
    const float value = X::widen(load(x + k));
    return args.channel_inverse == nullptr ? value : value * load(args.channel_inverse + k);
  };
  float scale = args.scale;
  if (args.is_dynamic) {
    float largest = 0.0f;
    for (int64_t k = thread_index(); k < args.K; k += block_threads()) {
      const float value = number(k);
      largest = larger_or_nan(value - value == 0.0f ? fabsf(value) : value - value, largest);
    }
    largest = block_maximum(largest, reinterpret_cast<float*>(shared_memory()));
    scale = largest < kLeastMaximum ? 1.0f : largest / 127.0f;
    if (thread_index() == 0) args.scales[block_x()] = scale;
  }
  const float inverse = 1.0f / scale;
  for (int64_t k = thread_index(); k < args.K; k += block_threads()) {
    args.out[block_x() * args.K + k] = to_int8(number(k), inverse, args.zero_point);
  }
}

}  // namespace sparsecore::cuda
