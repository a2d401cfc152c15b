// Integer dot products of 8 lanes with VNNI. Include inside a target region that has avx2 and avxvnni, after
// <immintrin.h>.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd/target.h"

namespace sparsecore {
namespace {

struct DotAvxVnni {
  using Sum = __m256i;
  using Bytes = __m256i;
  using Weights = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = false;

  static SPARSECORE_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static SPARSECORE_INLINE Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static SPARSECORE_INLINE void store(int32_t* p, Sum a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static SPARSECORE_INLINE Bytes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static SPARSECORE_INLINE Weights load_weights(const int8_t* p) { return load(p); }
  static SPARSECORE_INLINE Bytes broadcast(const uint8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return _mm256_set1_epi32(quad);
  }
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Bytes w) { return _mm256_dpbusd_avx_epi32(sum, a, w); }
};

}  // namespace
}  // namespace sparsecore
