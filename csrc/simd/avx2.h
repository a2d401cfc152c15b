// float32 vectors of 8 lanes. Include inside SPARSECORE_TARGET_BEGIN("avx2,fma,f16c"), after <immintrin.h>.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/partial.h"
#include "simd/target.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

// For each mask of 8 lanes: on a lane that is set, which of the packed numbers goes there; on another one, negative.
struct ExpandTable {
  alignas(64) int8_t index[256][8] = {};

  constexpr ExpandTable() {
    for (int bits = 0; bits < 256; ++bits) {
      int8_t next = 0;
      for (int lane = 0; lane < 8; ++lane) index[bits][lane] = (bits >> lane & 1) != 0 ? next++ : int8_t(-128);
    }
  }
};
constexpr ExpandTable kExpandTable;

struct Simd {
  using F32 = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  static constexpr int kAlignment = 8;  // floats

  static SPARSECORE_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static SPARSECORE_INLINE F32 zero() { return _mm256_setzero_ps(); }
  static SPARSECORE_INLINE F32 set1(float a) { return _mm256_set1_ps(a); }
  // Four numbers of which spread<i>() puts one in all lanes without a load of its own.
  using Quad = __m256;
  static SPARSECORE_INLINE Quad load_quad(const float* p) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
  template <int i>
  static SPARSECORE_INLINE F32 spread(Quad quad) {
    return _mm256_permute_ps(quad, i * 0x55);
  }
  static SPARSECORE_INLINE F32 load(const float* p) { return _mm256_loadu_ps(p); }
  static SPARSECORE_INLINE F32 load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
  static SPARSECORE_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a); }
  static SPARSECORE_INLINE void store_n(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
  static SPARSECORE_INLINE F32 load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static SPARSECORE_INLINE F32 load(const Float16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Half to even; a NaN stays one.
  static SPARSECORE_INLINE void store(BFloat16* p, F32 a) {
    const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256 nan = _mm256_castsi256_ps(_mm256_or_si256(high, _mm256_set1_epi32(0x40)));
    const __m256i words =
        _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), nan, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static SPARSECORE_INLINE void store(Float16* p, F32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  template <class T>
  static SPARSECORE_INLINE F32 load_n(const T* p, int n) {
    return load_first<Simd>(p, n);
  }
  template <class T>
  static SPARSECORE_INLINE void store_n(T* p, F32 a, int n) {
    store_first<Simd>(p, a, n);
  }
  static SPARSECORE_INLINE F32 gather(const float* p, const int32_t* index) {
    return _mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  }
  // p - minus, which may wrap around.
  static SPARSECORE_INLINE F32 from_difference(const int32_t* p, const int32_t* minus) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(minus))));
  }
  // Rounded to integers, half to even, a NaN to 0; plus shift; to their low bytes.
  static SPARSECORE_INLINE void store_bytes(uint8_t* p, F32 a, int32_t shift) {
    const __m256i is_number = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_ORD_Q));
    const __m256i rounded = _mm256_and_si256(_mm256_cvtps_epi32(a), is_number);
    const __m256i low = _mm256_and_si256(_mm256_add_epi32(rounded, _mm256_set1_epi32(shift)), _mm256_set1_epi32(0xff));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  static SPARSECORE_INLINE void store_bytes_n(uint8_t* p, F32 a, int32_t shift, int n) {
    store_first_bytes<Simd>(p, a, shift, n);
  }
  static SPARSECORE_INLINE F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static SPARSECORE_INLINE F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  static SPARSECORE_INLINE F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static SPARSECORE_INLINE F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
  static SPARSECORE_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  // minps and maxps return the second operand when either is NaN.
  static SPARSECORE_INLINE F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
  static SPARSECORE_INLINE F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  // NaN if either is.
  static SPARSECORE_INLINE F32 maximum(F32 a, F32 b) {
    return _mm256_blendv_ps(max(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static SPARSECORE_INLINE F32 abs(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static SPARSECORE_INLINE F32 copysign(F32 magnitude, F32 sign) {
    return _mm256_or_ps(abs(magnitude), _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
  }
  static SPARSECORE_INLINE F32 round(F32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static SPARSECORE_INLINE F32 exp2_integral(F32 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static SPARSECORE_INLINE F32 even(F32 a, F32 b) {
    const __m256d halves = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));  // a0 a2 b0 b2 | a4 a6 b4 b6
    return _mm256_castpd_ps(_mm256_permute4x64_pd(halves, 0xd8));
  }
  static SPARSECORE_INLINE F32 odd(F32 a, F32 b) {
    const __m256d halves = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));  // a1 a3 b1 b3 | a5 a7 b5 b7
    return _mm256_castpd_ps(_mm256_permute4x64_pd(halves, 0xd8));
  }
  using Lanes = __m256i;  // indices for vpermps, which reads three bits, and for vblendvps, which reads the sign
  static SPARSECORE_INLINE Lanes lanes_of(uint32_t bits) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpandTable.index[bits])));
  }
  static SPARSECORE_INLINE int64_t count(uint32_t bits) { return __builtin_popcount(bits); }
  static SPARSECORE_INLINE F32 expand(F32 packed, Lanes lanes) { return _mm256_permutevar8x32_ps(packed, lanes); }
  static SPARSECORE_INLINE F32 fma_on(Lanes lanes, F32 a, F32 b, F32 c) {
    return _mm256_blendv_ps(fma(a, b, c), c, _mm256_castsi256_ps(lanes));
  }
  // A table of 2^kTableBits numbers in a vector, and for each lane an index whose low bits it is looked up with.
  static constexpr int kTableBits = 3;
  using Index = __m256i;
  static SPARSECORE_INLINE Index load_index(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int kBits>
  static SPARSECORE_INLINE Index shift_right(Index index) {
    return _mm256_srli_epi32(index, kBits);
  }
  static SPARSECORE_INLINE F32 lookup(F32 table, Index index) { return _mm256_permutevar8x32_ps(table, index); }
  static SPARSECORE_INLINE float reduce_add(F32 a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    sum = _mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1));
    return _mm_cvtss_f32(sum);
  }
  static SPARSECORE_INLINE void transpose(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
    __m256 row[8], pair[8], quad[8];
    SPARSECORE_UNROLL
    for (int i = 0; i < 8; ++i) row[i] = load(src + i * ld_src);
    SPARSECORE_UNROLL
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
      pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 8; i += 4) {
      quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
      quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
      quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
      quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 4; ++i) {
      store(dst + i * ld_dst, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
      store(dst + (i + 4) * ld_dst, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
  }
};

}  // namespace
}  // namespace sparsecore
