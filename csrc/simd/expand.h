// Expansion of packed bytes under a mask by byte shuffles, for instruction sets without vpexpandb. Include inside a
// target region that has ssse3 and popcnt.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/expand_table.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

// 16 bytes; reads 16 from values.
SPARSECORE_INLINE __m128i expand_16(const int8_t* values, uint32_t mask) {
  const int second = _mm_popcnt_u32(mask & 0xff);
  const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values + second));
  const __m128i low_index = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpandBytes.index[mask & 0xff]));
  const __m128i high_index = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpandBytes.index[mask >> 8 & 0xff]));
  return _mm_unpacklo_epi64(_mm_shuffle_epi8(low, low_index), _mm_shuffle_epi8(high, high_index));
}

// 32 bytes; reads 32 from values.
SPARSECORE_INLINE __m256i expand_32(const int8_t* values, uint32_t mask) {
  const __m128i low = expand_16(values, mask & 0xffff);
  const __m128i high = expand_16(values + _mm_popcnt_u32(mask & 0xffff), mask >> 16);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

}  // namespace
}  // namespace sparsecore
