// Integer dot products of 16 lanes. Include inside a target region that has avx512vnni, after simd/avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/target.h"

namespace sparsecore {
namespace {

struct DotVnni {
  using Sum = __m512i;
  using Bytes = __m512i;
  using Weights = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = false;

  static SPARSECORE_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static SPARSECORE_INLINE Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static SPARSECORE_INLINE void store(int32_t* p, Sum a) { _mm512_storeu_si512(p, a); }
  static SPARSECORE_INLINE Bytes load(const void* p) { return _mm512_loadu_si512(p); }
  static SPARSECORE_INLINE Weights load_weights(const int8_t* p) { return load(p); }
  static SPARSECORE_INLINE Bytes broadcast(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return _mm512_set1_epi32(quad);
  }
  // vpdpbusd adds four products in int32: nothing saturates.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Bytes w) { return _mm512_dpbusd_epi32(sum, a, w); }

  // sums[r] = sums[place[r]], of 128.
  static void put_in_order(const int32_t* place, int32_t* sums) {
    __m512i from[8];
    SPARSECORE_UNROLL
    for (int i = 0; i < 8; ++i) from[i] = _mm512_loadu_si512(sums + 16 * i);
    for (int i = 0; i < 8; ++i) {
      const __m512i index = _mm512_loadu_si512(place + 16 * i);
      const __mmask16 is_odd = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
      const __mmask16 is_high = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
      __m512i of_32[4];
      SPARSECORE_UNROLL
      for (int j = 0; j < 4; ++j) of_32[j] = _mm512_permutex2var_epi32(from[2 * j], index, from[2 * j + 1]);
      const __m512i low = _mm512_mask_mov_epi32(of_32[0], is_odd, of_32[1]);
      const __m512i high = _mm512_mask_mov_epi32(of_32[2], is_odd, of_32[3]);
      _mm512_storeu_si512(sums + 16 * i, _mm512_mask_mov_epi32(low, is_high, high));
    }
  }
};

}  // namespace
}  // namespace sparsecore
