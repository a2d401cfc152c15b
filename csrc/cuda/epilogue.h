// From a sum to an element of y: scale, bias, residual and activation, as in sparsecore/kernel.h.
#pragma once

#include <cmath>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "sparsecore/kernel.h"

namespace sparsecore::cuda {

SPARSECORE_DEVICE float relu6(float x) { return x != x ? x : fminf(fmaxf(x, 0.0f), 6.0f); }

SPARSECORE_DEVICE float activate(Activation activation, float y) {
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y != y ? y : fmaxf(y, 0.0f);
    case Activation::kRelu6:
      return relu6(y);
    case Activation::kGelu:
      return 0.5f * y * (1.0f + erff(y * 0.70710678f));
    case Activation::kSilu:
      return y / (1.0f + expf(-y));
    case Activation::kHardswish:
      return y * relu6(y + 3.0f) / 6.0f;
    case Activation::kSigmoid:
      return 1.0f / (1.0f + expf(-y));
    case Activation::kHardsigmoid:
      return relu6(y + 3.0f) / 6.0f;
  }
  return y;
}

// Element `at` of y, in that row of W; scale: of rows, or null.
template <class X>
SPARSECORE_DEVICE void store(const SpmmOutput& out, const float* scale, int64_t row, int64_t at, float sum) {
  using T = typename X::Storage;
  if (scale != nullptr) sum *= load(scale + row);
  if (out.bias != nullptr) sum += load(out.bias + row);
  if (out.residual != nullptr) sum += X::widen(load(static_cast<const T*>(out.residual) + at));
  static_cast<T*>(out.y)[at] = X::narrow(activate(out.activation, sum));
}

// clamp(round_half_even(x * inverse_scale) + zero_point, -128, 127); NaN gives the zero point.
SPARSECORE_DEVICE int8_t to_int8(float x, float inverse_scale, int32_t zero_point) {
  const float scaled = x * inverse_scale;
  const float kept = scaled != scaled ? 0.0f : fminf(fmaxf(scaled, float(-128 - zero_point)), float(127 - zero_point));
  return static_cast<int8_t>(static_cast<int32_t>(rintf(kept)) + zero_point);
}

// Numbers of y where it is int8.
struct Integer8 {
  using Storage = int8_t;
};

// The same as store() for a sum of integers, of a row of x and one of W.
template <class X>
SPARSECORE_DEVICE void store_int8(const Int8Output& out, const Int8Activations& x, float weight_scale, int64_t token,
                                  int64_t row, int64_t at, int32_t sum) {
  using T = typename X::Storage;
  if (x.zero_point != 0) sum -= x.zero_point * load(x.weight_sum + row);
  const float scale = (x.scales == nullptr ? x.scale : load(x.scales + token)) * weight_scale;
  float y = fmaf(float(sum), scale, out.bias == nullptr ? 0.0f : load(out.bias + row));
  if constexpr (sizeof(T) == 1) {
    static_cast<T*>(out.y)[at] = to_int8(activate(out.activation, y), out.inverse_scale, out.zero_point);
  } else {
    if (out.residual != nullptr) y += X::widen(load(static_cast<const T*>(out.residual) + at));
    static_cast<T*>(out.y)[at] = X::narrow(activate(out.activation, y));
  }
}

}  // namespace sparsecore::cuda
