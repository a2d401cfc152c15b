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

}  // namespace sparsecore::cuda
