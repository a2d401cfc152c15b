// float32 vectors of 16 lanes. Include inside SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"),
// after <immintrin.h>.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/target.h"
#include "sparsecore/views.h"

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
  // Four numbers of which spread<i>() puts one in all lanes without a load of its own.
  using Quad = __m512;
  static SPARSECORE_INLINE Quad load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  template <int i>
  static SPARSECORE_INLINE F32 spread(Quad quad) {
    return _mm512_permute_ps(quad, i * 0x55);
  }
  static SPARSECORE_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static SPARSECORE_INLINE F32 load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
  static SPARSECORE_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
  static SPARSECORE_INLINE void store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
  static SPARSECORE_INLINE F32 load(const BFloat16* p) { return load_n(p, kLanes); }
  static SPARSECORE_INLINE F32 load(const Float16* p) { return load_n(p, kLanes); }
  static SPARSECORE_INLINE void store(BFloat16* p, F32 a) { store_n(p, a, kLanes); }
  static SPARSECORE_INLINE void store(Float16* p, F32 a) { store_n(p, a, kLanes); }
  static SPARSECORE_INLINE F32 load_n(const BFloat16* p, int n) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static SPARSECORE_INLINE F32 load_n(const Float16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
  }
  // Half to even; a NaN stays one.
  static SPARSECORE_INLINE void store_n(BFloat16* p, F32 a, int n) {
    const __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i words =
        _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(words));
  }
  static SPARSECORE_INLINE void store_n(Float16* p, F32 a, int n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static SPARSECORE_INLINE F32 gather(const float* p, const int32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4);
  }
  // p - minus, which may wrap around.
  static SPARSECORE_INLINE F32 from_difference(const int32_t* p, const int32_t* minus) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_loadu_si512(minus)));
  }
  // Rounded to integers, half to even, a NaN to 0; plus shift; to their low bytes.
  static SPARSECORE_INLINE __m128i to_bytes(F32 a, int32_t shift) {
    const __m512i rounded = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a);
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, _mm512_set1_epi32(shift)));
  }
  static SPARSECORE_INLINE void store_bytes(uint8_t* p, F32 a, int32_t shift) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bytes(a, shift));
  }
  static SPARSECORE_INLINE void store_bytes_n(uint8_t* p, F32 a, int32_t shift, int n) {
    _mm_mask_storeu_epi8(p, first_lanes(n), to_bytes(a, shift));
  }
  static SPARSECORE_INLINE F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static SPARSECORE_INLINE F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static SPARSECORE_INLINE F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static SPARSECORE_INLINE F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static SPARSECORE_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  // vminps and vmaxps return the second operand when either is NaN.
  static SPARSECORE_INLINE F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
  static SPARSECORE_INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  // NaN if either is.
  static SPARSECORE_INLINE F32 maximum(F32 a, F32 b) {
    return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
  }
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
  static SPARSECORE_INLINE F32 odd(F32 a, F32 b) {
    const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, index, b);
  }
  // Two runs of half a vector each, where a whole one would hold too much of a short row.
  static SPARSECORE_INLINE F32 load_halves(const float* low, const float* high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
  }
  // The first n lanes of the low half, then those of the high one.
  static SPARSECORE_INLINE F32 join_halves(F32 a, int n) {
    return _mm512_maskz_compress_ps(static_cast<__mmask16>(((1u << n) - 1u) * 0x101u), a);
  }
  using Lanes = __mmask16;
  static SPARSECORE_INLINE Lanes lanes_of(uint32_t bits) { return static_cast<__mmask16>(bits); }
  static SPARSECORE_INLINE int64_t count(uint32_t bits) { return __builtin_popcount(bits); }
  static SPARSECORE_INLINE F32 expand(F32 packed, Lanes lanes) {
    asm("" : "+v"(packed));  // in a register: with its operand in memory the instruction is slow on Zen 4
    return _mm512_maskz_expand_ps(lanes, packed);
  }
  static SPARSECORE_INLINE F32 fma_on(Lanes lanes, F32 a, F32 b, F32 c) {
    return _mm512_mask3_fmadd_ps(a, b, c, lanes);
  }
  // A table of 2^kTableBits numbers in a vector, and for each lane an index whose low bits it is looked up with.
  static constexpr int kTableBits = 4;
  using Index = __m512i;
  static SPARSECORE_INLINE Index load_index(const uint32_t* p) { return _mm512_loadu_si512(p); }
  template <int kBits>
  static SPARSECORE_INLINE Index shift_right(Index index) {
    return _mm512_srli_epi32(index, kBits);
  }
  static SPARSECORE_INLINE F32 lookup(F32 table, Index index) { return _mm512_permutexvar_ps(index, table); }
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
