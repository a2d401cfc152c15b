// float32 vectors of 4 lanes. NEON is part of 64-bit Arm, so no target region is opened.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "simd/partial.h"
#include "simd/target.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

// For each mask of 4 lanes: on a lane that is set, the bytes of the packed number that goes there; on another one, 255.
struct ExpandTable {
  alignas(64) uint8_t index[16][16] = {};

  constexpr ExpandTable() {
    for (int bits = 0; bits < 16; ++bits) {
      int next = 0;
      for (int lane = 0; lane < 4; ++lane) {
        const bool is_set = (bits >> lane & 1) != 0;
        for (int byte = 0; byte < 4; ++byte) index[bits][4 * lane + byte] = is_set ? uint8_t(4 * next + byte) : 255;
        next += is_set;
      }
    }
  }
};
constexpr ExpandTable kExpandTable;

struct Simd {
  using F32 = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kAlignment = 4;  // floats
  static constexpr int kRegisters = 32;

  static SPARSECORE_INLINE F32 zero() { return vdupq_n_f32(0.0f); }
  static SPARSECORE_INLINE F32 set1(float a) { return vdupq_n_f32(a); }
  // Four numbers of which spread<i>() puts one in all lanes: the compiler makes it part of the multiply-add.
  using Quad = float32x4_t;
  static SPARSECORE_INLINE Quad load_quad(const float* p) { return vld1q_f32(p); }
  template <int i>
  static SPARSECORE_INLINE F32 spread(Quad quad) {
    return vdupq_laneq_f32(quad, i);
  }
  static SPARSECORE_INLINE F32 load(const float* p) { return vld1q_f32(p); }
  // NEON has no masks: lanes are read and written in twos and ones.
  static SPARSECORE_INLINE F32 load_n(const float* p, int n) {
    if (n >= kLanes) return load(p);
    F32 a = zero();
    if (n >= 2) a = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
    if (n == 3) a = vld1q_lane_f32(p + 2, a, 2);
    if (n == 1) a = vld1q_lane_f32(p, a, 0);
    return a;
  }
  static SPARSECORE_INLINE void store(float* p, F32 a) { vst1q_f32(p, a); }
  static SPARSECORE_INLINE void store_n(float* p, F32 a, int n) {
    if (n >= kLanes) return store(p, a);
    if (n >= 2) vst1_f32(p, vget_low_f32(a));
    if (n == 3) vst1q_lane_f32(p + 2, a, 2);
    if (n == 1) vst1q_lane_f32(p, a, 0);
  }
  static SPARSECORE_INLINE F32 load(const BFloat16* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16));
  }
  static SPARSECORE_INLINE F32 load(const Float16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
  // Half to even; a NaN stays one.
  static SPARSECORE_INLINE void store(BFloat16* p, F32 a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a), high = vshrq_n_u32(bits, 16);
    const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint32x4_t nan = vorrq_u32(high, vdupq_n_u32(0x40));
    vst1_u16(&p->bits, vmovn_u32(vbslq_u32(vceqq_f32(a, a), rounded, nan)));
  }
  static SPARSECORE_INLINE void store(Float16* p, F32 a) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
  template <class T>
  static SPARSECORE_INLINE F32 load_n(const T* p, int n) {
    return load_first<Simd>(p, n);
  }
  template <class T>
  static SPARSECORE_INLINE void store_n(T* p, F32 a, int n) {
    store_first<Simd>(p, a, n);
  }
  static SPARSECORE_INLINE F32 gather(const float* p, const int32_t* index) {
    F32 a = vld1q_dup_f32(p + index[0]);
    a = vld1q_lane_f32(p + index[1], a, 1);
    a = vld1q_lane_f32(p + index[2], a, 2);
    return vld1q_lane_f32(p + index[3], a, 3);
  }
  // p - minus, which may wrap around.
  static SPARSECORE_INLINE F32 from_difference(const int32_t* p, const int32_t* minus) {
    return vcvtq_f32_s32(vsubq_s32(vld1q_s32(p), vld1q_s32(minus)));
  }
  // Rounded to integers, half to even, a NaN to 0; plus shift; to their low bytes.
  static SPARSECORE_INLINE void store_bytes(uint8_t* p, F32 a, int32_t shift) {
    const int32x4_t rounded = vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(shift));  // NEON converts a NaN to 0
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(rounded));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(bytes), 0);
  }
  static SPARSECORE_INLINE void store_bytes_n(uint8_t* p, F32 a, int32_t shift, int n) {
    store_first_bytes<Simd>(p, a, shift, n);
  }
  static SPARSECORE_INLINE F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
  static SPARSECORE_INLINE F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
  static SPARSECORE_INLINE F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
  static SPARSECORE_INLINE F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
  static SPARSECORE_INLINE F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
  // The second operand when either is NaN or both are zero, as in the other wrappers; fmin and fmax differ there.
  static SPARSECORE_INLINE F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static SPARSECORE_INLINE F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  // NaN if either is.
  static SPARSECORE_INLINE F32 maximum(F32 a, F32 b) { return vmaxq_f32(a, b); }
  static SPARSECORE_INLINE F32 abs(F32 a) { return vabsq_f32(a); }
  static SPARSECORE_INLINE F32 copysign(F32 magnitude, F32 sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
  }
  static SPARSECORE_INLINE F32 round(F32 a) { return vrndnq_f32(a); }
  static SPARSECORE_INLINE F32 exp2_integral(F32 n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static SPARSECORE_INLINE F32 even(F32 a, F32 b) { return vuzp1q_f32(a, b); }
  static SPARSECORE_INLINE F32 odd(F32 a, F32 b) { return vuzp2q_f32(a, b); }
  using Lanes = uint8x16_t;  // indices for tbl
  static SPARSECORE_INLINE Lanes lanes_of(uint32_t bits) { return vld1q_u8(kExpandTable.index[bits]); }
  static SPARSECORE_INLINE int64_t count(uint32_t bits) {  // digit `bits` is its count; NEON counts in vectors only
    return static_cast<int64_t>(0x4332322132212110u >> (4 * bits) & 7);
  }
  static SPARSECORE_INLINE F32 expand(F32 packed, Lanes lanes) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(packed), lanes));
  }
  static SPARSECORE_INLINE F32 fma_on(Lanes lanes, F32 a, F32 b, F32 c) {
    const uint32x4_t is_other = vceqq_u32(vreinterpretq_u32_u8(lanes), vdupq_n_u32(0xffffffffu));
    return vbslq_f32(is_other, c, fma(a, b, c));
  }
  static constexpr int kTableBits = 0;  // no table of numbers in a vector
  static SPARSECORE_INLINE float reduce_add(F32 a) { return vaddvq_f32(a); }
  static SPARSECORE_INLINE void transpose(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
    const F32 row[4] = {load(src), load(src + ld_src), load(src + 2 * ld_src), load(src + 3 * ld_src)};
    float64x2_t pair[4];
    SPARSECORE_UNROLL
    for (int i = 0; i < 4; i += 2) {
      pair[i] = vreinterpretq_f64_f32(vtrn1q_f32(row[i], row[i + 1]));
      pair[i + 1] = vreinterpretq_f64_f32(vtrn2q_f32(row[i], row[i + 1]));
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < 2; ++i) {
      store(dst + i * ld_dst, vreinterpretq_f32_f64(vtrn1q_f64(pair[i], pair[i + 2])));
      store(dst + (i + 2) * ld_dst, vreinterpretq_f32_f64(vtrn2q_f64(pair[i], pair[i + 2])));
    }
  }
};

}  // namespace
}  // namespace sparsecore
