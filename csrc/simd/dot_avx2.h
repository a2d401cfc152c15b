// Integer dot products of 8 lanes, exact on every AVX2 machine. Include inside a target region that has avx2, after
// <immintrin.h>.
//
// pmaddubsw multiplies bytes, but saturates at full 8-bit weights. Dense weights are widened to int16 for pmaddwd,
// which is exact and takes as many operations as pmaddubsw with its signs juggled; lookup weights are packed so that
// the values of a pair never saturate.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/target.h"

namespace sparsecore {
namespace {

struct DotAvx2 {
  static constexpr int kLanes = 8;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = true;

  // Two sums of each lane, side by side: lanes 0 to 3 and 4 to 7.
  struct Sum {
    __m256i low, high;
  };
  // A quad of each lane in int16.
  struct Weights {
    __m256i low, high;
  };
  using Inputs = __m256i;

  static SPARSECORE_INLINE Sum zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static SPARSECORE_INLINE void store(int32_t* p, Sum a) {
    const __m256i lanes = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a.low, a.high), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), lanes);
  }
  static SPARSECORE_INLINE Weights load_weights(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
  }
  static SPARSECORE_INLINE Inputs broadcast(const uint8_t* p) {
    int64_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return _mm256_set1_epi64x(quad);
  }
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Inputs a, Weights w) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a, w.low)),
            _mm256_add_epi32(sum.high, _mm256_madd_epi16(a, w.high))};
  }
};

}  // namespace
}  // namespace sparsecore
