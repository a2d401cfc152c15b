// Table lookup and dot product of 8 lanes with VNNI. Include inside a target region that has avx2 and avxvnni, after
// <immintrin.h>.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/dot_avxvnni.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

struct LookupAvxVnni : DotAvxVnni {
  static constexpr int kPositions = 8;
  static constexpr int64_t kTable = 16;
  static constexpr bool kNeedsSafePairs = false;
  using Table = Bytes;
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm256_shuffle_epi8(table, columns); }
};

}  // namespace
}  // namespace sparsecore
