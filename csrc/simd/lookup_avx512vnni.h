// Table lookup and dot product of 16 lanes without VBMI. Include inside a target region that has avx512vnni, after
// simd/avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/dot_avx512vnni.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

// For machines without VBMI: byte shuffles reach 16 columns.
struct LookupVnni : DotVnni {
  static constexpr int kPositions = 16;
  static constexpr int64_t kTable = 16;
  static constexpr bool kNeedsSafePairs = false;
  using Table = Bytes;
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm512_shuffle_epi8(table, columns); }
};

}  // namespace
}  // namespace sparsecore
