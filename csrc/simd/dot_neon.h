// Integer dot products of 4 lanes. NEON multiplies bytes of one sign only: activations are read as signed, 128 less.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "simd/expand_table.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

struct DotNeon {
  using Sum = int32x4_t;
  using Bytes = int8x16_t;
  using Weights = int8x16_t;
  using Table = uint8x16_t;
  static constexpr int kLanes = 4;
  static constexpr int64_t kTable = 16;
  static constexpr int32_t kByteOffset = 128;
  static constexpr bool kWidens = false;

  static SPARSECORE_INLINE Sum zero() { return vdupq_n_s32(0); }
  static SPARSECORE_INLINE Sum add(Sum a, Sum b) { return vaddq_s32(a, b); }
  static SPARSECORE_INLINE void store(int32_t* p, Sum a) { vst1q_s32(p, a); }
  static SPARSECORE_INLINE Bytes load(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static SPARSECORE_INLINE Weights load_weights(const int8_t* p) { return vld1q_s8(p); }
  static SPARSECORE_INLINE Bytes broadcast(const uint8_t* p) {
    uint32_t quad;
    std::memcpy(&quad, p, sizeof(quad));
    return vreinterpretq_s8_u32(vdupq_n_u32(quad ^ 0x80808080u));
  }
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) { return veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80)); }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) {
    return vreinterpretq_s8_u8(vqtbl1q_u8(table, vreinterpretq_u8_s8(columns)));
  }

  // Products in int16; no pair of them is added before it is int32. Machines with a dot product have a better one.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }

  using Mask = uint16_t;
  static SPARSECORE_INLINE Mask load_mask(const uint8_t* p) {
    Mask mask;
    std::memcpy(&mask, p, sizeof(mask));
    return mask;
  }
  static SPARSECORE_INLINE int64_t count(Mask mask) { return __builtin_popcount(mask); }
  // Positions of the set bits, by a table per half of the mask; 0xff shuffles in a zero.
  static SPARSECORE_INLINE Weights expand(const int8_t* values, Mask mask) {
    const uint8x8_t low = vld1_u8(kExpandBytes.index[mask & 0xff]), high = vld1_u8(kExpandBytes.index[mask >> 8]);
    const uint8x8_t first = vtbl1_u8(vreinterpret_u8_s8(vld1_s8(values)), low);
    const uint8x8_t second = vtbl1_u8(vreinterpret_u8_s8(vld1_s8(values + __builtin_popcount(mask & 0xff))), high);
    return vreinterpretq_s8_u8(vcombine_u8(first, second));
  }
};

}  // namespace
}  // namespace sparsecore
