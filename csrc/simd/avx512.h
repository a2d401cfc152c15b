// float32 vectors of 16 lanes. Include inside SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"),
// after <immintrin.h>.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/target.h"

namespace sparsecore {
namespace {

struct Simd {
  using F32 = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  // Floats. Half a vector: a load that crosses a cache line there costs nothing on Zen 4 (measured), whose vectors are
  // two halves.
  static constexpr int kAlignment = 8;

  static SPARSECORE_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static SPARSECORE_INLINE F32 zero() { return _mm512_setzero_ps(); }
  static SPARSECORE_INLINE F32 set1(float a) { return _mm512_set1_ps(a); }
  static SPARSECORE_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static SPARSECORE_INLINE F32 load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static SPARSECORE_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
  static SPARSECORE_INLINE void store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
  static SPARSECORE_INLINE F32 gather(const float* p, const int32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4);
  }
  static SPARSECORE_INLINE F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static SPARSECORE_INLINE F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static SPARSECORE_INLINE F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static SPARSECORE_INLINE F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static SPARSECORE_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  // vminps and vmaxps return the second operand when either is NaN.
  static SPARSECORE_INLINE F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static SPARSECORE_INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static SPARSECORE_INLINE F32 abs(F32 a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
  static SPARSECORE_INLINE F32 copysign(F32 magnitude, F32 sign) {
    return _mm512_or_ps(abs(magnitude), _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
  }
  static SPARSECORE_INLINE F32 round(F32 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static SPARSECORE_INLINE F32 exp2_integral(F32 n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static SPARSECORE_INLINE F32 even(F32 a, F32 b) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, index, b);
  }
  static SPARSECORE_INLINE float reduce_add(F32 a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    sum = _mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1));
    return _mm_cvtss_f32(sum);
  }
  // 4 x 4 squares inside 128-bit lanes, then two rounds that put the lanes in order.
  static SPARSECORE_INLINE void transpose(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
    __m512 pair[16], quad[16], half[16];
    SPARSECORE_UNROLL
    for (int i = 0; i < 16; i += 2) {
      const __m512 even = load(src + i * ld_src), odd = load(src + (i + 1) * ld_src);
      pair[i] = _mm512_unpacklo_ps(even, odd);
      pair[i + 1] = _mm512_unpackhi_ps(even, odd);
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 16; i += 4) {
      quad[i] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0x44);
      quad[i + 1] = _mm512_shuffle_ps(pair[i], pair[i + 2], 0xee);
      quad[i + 2] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
      quad[i + 3] = _mm512_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 4; ++i) {
      half[i] = _mm512_shuffle_f32x4(quad[i], quad[i + 4], 0x88);
      half[i + 4] = _mm512_shuffle_f32x4(quad[i], quad[i + 4], 0xdd);
      half[i + 8] = _mm512_shuffle_f32x4(quad[i + 8], quad[i + 12], 0x88);
      half[i + 12] = _mm512_shuffle_f32x4(quad[i + 8], quad[i + 12], 0xdd);
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 4; ++i) {
      store(dst + i * ld_dst, _mm512_shuffle_f32x4(half[i], half[i + 8], 0x88));
      store(dst + (i + 4) * ld_dst, _mm512_shuffle_f32x4(half[i + 4], half[i + 12], 0x88));
      store(dst + (i + 8) * ld_dst, _mm512_shuffle_f32x4(half[i], half[i + 8], 0xdd));
      store(dst + (i + 12) * ld_dst, _mm512_shuffle_f32x4(half[i + 4], half[i + 12], 0xdd));
    }
  }
};

}  // namespace
}  // namespace sparsecore
