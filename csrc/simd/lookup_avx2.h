// Table lookup and dot product of 8 lanes. Include inside a target region that has avx2, after <immintrin.h>.
//
// pshufb, pmaddubsw, pmaddwd, paddd: four operations for 32 weights. The packing sees to it that pmaddubsw, which adds
// two products in int16, never saturates.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/target.h"

namespace sparsecore {
namespace {

struct LookupAvx2 {
  static constexpr int kLanes = 8, kPositions = 4;
  static constexpr int64_t kTable = 16;
  static constexpr bool kNeedsSafePairs = true;
  static constexpr int32_t kByteOffset = 0;
  using Sum = __m256i;
  using Bytes = __m256i;
  using Table = __m256i;

  static SPARSECORE_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static SPARSECORE_INLINE Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static SPARSECORE_INLINE void store(int32_t* p, Sum a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static SPARSECORE_INLINE Bytes load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm256_shuffle_epi8(table, columns); }
  // Exact for pairs of weights that are safe: no sum of two products leaves int16.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Bytes w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace sparsecore
