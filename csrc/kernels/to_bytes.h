// Float numbers to 8-bit integers: algorithm text; include after a wrapper that defines Simd.
#pragma once

#include <cstdint>

#include "kernels/copy.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

// All lanes of a vector, or the first n: masks cost more than what they mask.
template <class S>
struct WholeVector {
  template <class T>
  SPARSECORE_INLINE typename S::F32 load(const T* p) const {
    return S::load(p);
  }
};
template <class S>
struct PartOfVector {
  int n;
  template <class T>
  SPARSECORE_INLINE typename S::F32 load(const T* p) const {
    return S::load_n(p, n);
  }
};

// Calls function(i, size of the vector) for the vectors that n numbers are.
template <class S, class Function>
SPARSECORE_INLINE void for_vectors(int64_t n, Function function) {
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) function(i, WholeVector<S>{});
  if (i < n) function(i, PartOfVector<S>{static_cast<int>(n - i)});
}

// byte = clamp(round_half_even(x * inverse) + zero_point, -128, 127) + shift; NaN counts as 0. Multiplied by the
// inverse of the scale and not divided, in every kernel, so that all of them give the same bytes.
template <class S>
struct ToBytes {
  typename S::F32 inverse, low, high;
  int32_t shift;

  SPARSECORE_INLINE ToBytes(float inverse_scale, int32_t zero_point, int32_t shift_of_all)
      : inverse(S::set1(inverse_scale)),
        low(S::set1(float(-128 - zero_point))),
        high(S::set1(float(127 - zero_point))),
        shift(zero_point + shift_of_all) {}

  // The ends are integers, so clamping before rounding gives the same. min and max give their second operand for a NaN.
  SPARSECORE_INLINE typename S::F32 clamped(typename S::F32 x) const {
    return S::min(high, S::max(low, S::mul(x, inverse)));
  }
  SPARSECORE_INLINE void store(uint8_t* p, typename S::F32 x, WholeVector<S>) const {
    S::store_bytes(p, clamped(x), shift);
  }
  SPARSECORE_INLINE void store(uint8_t* p, typename S::F32 x, PartOfVector<S> size) const {
    S::store_bytes_n(p, clamped(x), shift, size.n);
  }
};

}  // namespace
}  // namespace sparsecore
