// Table lookup and dot product of 16 lanes, in tables of 64 and 256. Include inside a target region that has
// avx512vbmi, after simd/avx512.h.
//
// vpermb looks 64 activations up in a table of 64. On Zen 4 it starts once a cycle like vpdpbusd, and both together
// take 1.4 cycles (measured). vpermi2b has a table of 128, which fills slots better, but takes 1.9 with the dot
// product: at 90% zeros 18% slower in all.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/dot_avx512vnni.h"
#include "simd/target.h"

namespace sparsecore {
namespace {

struct LookupVbmi : DotVnni {
  static constexpr int kPositions = 16;  // 16 sums + 6 steps of columns and values + 2 tables
  static constexpr int64_t kTable = 64;
  static constexpr bool kNeedsSafePairs = false;
  using Table = Bytes;
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) { return load(p); }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm512_permutexvar_epi8(columns, table); }
};

// For few positions, where the bytes of the slots decide and not the lookups: four times the columns fill slots better,
// 0.28 bytes for each dense weight instead of 0.39 at 90% zeros.
struct LookupVbmiWide : DotVnni {
  static constexpr int kPositions = 4;
  static constexpr int64_t kTable = 256;
  static constexpr bool kNeedsSafePairs = false;
  struct Table {
    Bytes of[4];
  };
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return {{load(p), load(p + 64), load(p + 128), load(p + 192)}};
  }
  static SPARSECORE_INLINE Bytes lookup(const Table& table, Bytes columns) {
    const Bytes low = _mm512_permutex2var_epi8(table.of[0], columns, table.of[1]);
    const Bytes high = _mm512_permutex2var_epi8(table.of[2], columns, table.of[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(columns), high);
  }
};

}  // namespace
}  // namespace sparsecore
