// float32 "vectors" of one lane: the algorithm text of a kernel compiled with it is the portable fallback.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/target.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

// The compiler's own float16, under the name that it has on this architecture.
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

struct Simd {
  using F32 = float;
  static constexpr int kLanes = 1;
  static constexpr int kRegisters = 16;
  static constexpr int kAlignment = 1;  // floats: loads from multiples of it run at full rate

  static SPARSECORE_INLINE F32 zero() { return 0.0f; }
  static SPARSECORE_INLINE F32 set1(float a) { return a; }
  using Quad = const float*;
  static SPARSECORE_INLINE Quad load_quad(const float* p) { return p; }
  template <int i>
  static SPARSECORE_INLINE F32 spread(Quad quad) {
    return quad[i];
  }
  static SPARSECORE_INLINE F32 load(const float* p) { return *p; }
  static SPARSECORE_INLINE void store(float* p, F32 a) { *p = a; }
  static SPARSECORE_INLINE F32 load(const BFloat16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float a;
    std::memcpy(&a, &bits, sizeof(a));
    return a;
  }
  static SPARSECORE_INLINE F32 load(const Float16* p) {
    Half a;
    std::memcpy(&a, &p->bits, sizeof(a));
    return static_cast<float>(a);
  }
  static SPARSECORE_INLINE void store(BFloat16* p, F32 a) {
    uint32_t bits;
    std::memcpy(&bits, &a, sizeof(bits));
    // Half to even; a NaN stays one.
    p->bits = static_cast<uint16_t>(a == a ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
  }
  static SPARSECORE_INLINE void store(Float16* p, F32 a) {
    const Half half = static_cast<Half>(a);
    std::memcpy(&p->bits, &half, sizeof(half));
  }
  template <class T>
  static SPARSECORE_INLINE F32 load_n(const T* p, int n) {
    return n > 0 ? load(p) : 0.0f;
  }
  template <class T>
  static SPARSECORE_INLINE void store_n(T* p, F32 a, int n) {
    if (n > 0) store(p, a);
  }
  static SPARSECORE_INLINE F32 gather(const float* p, const int32_t* index) { return p[*index]; }
  // p - minus, which may wrap around.
  static SPARSECORE_INLINE F32 from_difference(const int32_t* p, const int32_t* minus) {
    return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(*p) - static_cast<uint32_t>(*minus)));
  }
  // Rounded to an integer, half to even, a NaN to 0; plus shift; to its low byte.
  static SPARSECORE_INLINE void store_bytes(uint8_t* p, F32 a, int32_t shift) {
    *p = static_cast<uint8_t>(a == a ? static_cast<int32_t>(round(a)) + shift : shift);
  }
  static SPARSECORE_INLINE void store_bytes_n(uint8_t* p, F32 a, int32_t shift, int n) {
    if (n > 0) store_bytes(p, a, shift);
  }
  static SPARSECORE_INLINE F32 add(F32 a, F32 b) { return a + b; }
  static SPARSECORE_INLINE F32 sub(F32 a, F32 b) { return a - b; }
  static SPARSECORE_INLINE F32 mul(F32 a, F32 b) { return a * b; }
  static SPARSECORE_INLINE F32 div(F32 a, F32 b) { return a / b; }
  static SPARSECORE_INLINE F32 fma(F32 a, F32 b, F32 c) { return std::fma(a, b, c); }
  // NaN in the second operand stays.
  static SPARSECORE_INLINE F32 min(F32 a, F32 b) { return a < b ? a : b; }
  static SPARSECORE_INLINE F32 max(F32 a, F32 b) { return a > b ? a : b; }
  // NaN if either is.
  static SPARSECORE_INLINE F32 maximum(F32 a, F32 b) { return a > b || a != a ? a : b; }
  static SPARSECORE_INLINE F32 abs(F32 a) { return std::fabs(a); }
  static SPARSECORE_INLINE F32 copysign(F32 magnitude, F32 sign) { return std::copysign(magnitude, sign); }
  static SPARSECORE_INLINE F32 round(F32 a) { return std::nearbyint(a); }  // half to even
  // 2^n for an integral n in [-126, 127]; any number for NaN, whose conversion is not defined in C++.
  static SPARSECORE_INLINE F32 exp2_integral(F32 n) {
    const int32_t exponent = n == n ? static_cast<int32_t>(n) : 0;
    const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
  }
  static constexpr int kTableBits = 0;  // no table of numbers in a vector
  static SPARSECORE_INLINE float reduce_add(F32 a) { return a; }
  // Some of a vector's lanes, from a bit for each; how many bits are set.
  using Lanes = bool;
  static SPARSECORE_INLINE Lanes lanes_of(uint32_t bits) { return bits != 0; }
  static SPARSECORE_INLINE int64_t count(uint32_t bits) { return bits; }
  // The first numbers of `packed`, in order, on those lanes; anything on the others.
  static SPARSECORE_INLINE F32 expand(F32 packed, Lanes) { return packed; }
  // a * b + c on those lanes, c on the others.
  static SPARSECORE_INLINE F32 fma_on(Lanes lanes, F32 a, F32 b, F32 c) { return lanes ? fma(a, b, c) : c; }
  // Lanes 0, 2, 4, ... of a, then of b; and lanes 1, 3, 5, ....
  static SPARSECORE_INLINE F32 even(F32 a, F32) { return a; }
  static SPARSECORE_INLINE F32 odd(F32, F32 b) { return b; }
  // dst[c][r] = src[r][c] for a square of kLanes.
  static SPARSECORE_INLINE void transpose(const float* src, int64_t, float* dst, int64_t) { *dst = *src; }
};

}  // namespace
}  // namespace sparsecore
