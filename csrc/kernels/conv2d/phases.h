// Pixels of a strided convolution by their phase, column or row modulo the stride: taps of one phase read neighbouring
// pixels of it for neighbouring outputs.
#pragma once

#include <cstdint>

#include "simd/target.h"

namespace sparsecore {
namespace {

// Filter taps along one axis: tap k reads input pixel (o + k * dilation / stride) * stride + phase - padding.
SPARSECORE_INLINE bool phase_is_used(int64_t phase, int64_t stride, int64_t dilation, int64_t taps) {
  for (int64_t k = 0; k < taps; ++k) {
    if (k * dilation % stride == phase) return true;
  }
  return false;
}

// Used phases before `phase`; how many there are in all for phase = stride.
SPARSECORE_INLINE int64_t phases_before(int64_t phase, int64_t stride, int64_t dilation, int64_t taps) {
  int64_t count = 0;
  for (int64_t p = 0; p < phase; ++p) count += phase_is_used(p, stride, dilation, taps);
  return count;
}

}  // namespace
}  // namespace sparsecore
