// Table lookup of bytes whose halves are a column and a value, in front of a dot product of 4 lanes.
#pragma once

#include "simd/dot_neon.h"

namespace sparsecore {
namespace {

// Dot: a DotNeon with its multiply_add().
template <class Dot>
struct NibblesNeon : Dot {
  using Sum = typename Dot::Sum;
  using Bytes = typename Dot::Bytes;
  static constexpr int kPositions = 8;
  struct Cursor {};  // places are columns
  static SPARSECORE_INLINE Cursor first_cursor() { return {}; }
  static SPARSECORE_INLINE Bytes columns(Bytes slots, Cursor&) { return vandq_s8(slots, vdupq_n_s8(0x0f)); }
  static SPARSECORE_INLINE Bytes values(Bytes slots) { return vshrq_n_s8(slots, 4); }
  static SPARSECORE_INLINE void store_sum(int32_t* p, Sum sum) { Dot::store(p, sum); }
};

}  // namespace
}  // namespace sparsecore
