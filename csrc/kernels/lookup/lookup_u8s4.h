// Table lookup, activation bytes x sparse 4-bit weights with a scale per row and group: algorithm text.
//
// A step multiplies 4 slots of each row of a block, as in lookup_u8s8.h; places and values of a slot come apart in
// registers, once for all positions of a tile. Sums of a group are exact; scaled, they are added up in order of the
// columns, so that no packing changes a bit. A wrapper defines Dot with
//   kLanes, those of S, kPositions, kTable, kByteOffset;
//   Sum, Bytes, Table: sums of the lanes; a quad of each lane; kTable activations;
//   zero(), store_sum(int32_t*, Sum), load(const uint8_t*), load_table(const uint8_t*), lookup(table, columns);
//   Cursor, first_cursor(): where the slots of an entry are; columns(slots, cursor): their columns, and moves on;
//   values(slots): what multiply_add(sum, activations, values) takes, exactly for any of them.
#pragma once

#include "kernels/int8_product.h"
#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

template <class S, class Dot>
struct LookupU8S4 {
  using Args = LookupInt4Args;
  static constexpr int kBlocks = 1, kPositions = Dot::kPositions;
  static constexpr int32_t kByteOffset = Dot::kByteOffset;
  static constexpr bool kWidens = false, kHasScaledSums = true;
  static constexpr int64_t kQuadBytes = 4 * Dot::kLanes;
  static constexpr int64_t kPrefetch = 2048;  // as in lookup_u8s8.h
  static_assert(S::kLanes == Dot::kLanes);

  static bool supports(const LookupInt4View& weight) {
    return weight.lanes == Dot::kLanes && weight.table == Dot::kTable;
  }
  static int64_t num_offsets(const LookupInt4View&) { return 0; }
  static void fill_offsets(const Args&, int64_t*) {}

  static void put_in_order(const int32_t* place, int32_t* sums)
    requires requires { Dot::put_in_order(place, sums); }
  {
    Dot::put_in_order(place, sums);
  }

  template <int NB, int T>
  static void accumulate(const LookupInt4View& weight, int32_t zero_point, int64_t block, const uint8_t* const* x,
                         float* acc, int64_t ld) {
    const int64_t groups = weight.groups();
    const uint8_t* slots = weight.slots + int64_t(weight.step_ptr[block]) * kQuadBytes;
    typename S::F32 total[T];
    SPARSECORE_UNROLL
    for (int i = 0; i < T; ++i) total[i] = S::zero();
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = block * groups + g;
      typename Dot::Sum sums[T];
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) sums[i] = Dot::zero();
      for (int64_t e = weight.entry_ptr[at]; e < weight.entry_ptr[at + 1]; ++e) {
        const int64_t from = g * weight.group_cols + weight.entry_table[e] * Dot::kTable;
        run_entry<T>(slots, weight.entry_steps[e], x, from, sums);
      }
      // What the zero point adds to the sums.
      alignas(64) int32_t zero[Dot::kLanes], part[Dot::kLanes];
      for (int lane = 0; lane < Dot::kLanes; ++lane)
        zero[lane] = zero_point * weight.group_sum[at * Dot::kLanes + lane];
      const auto scale = S::load(weight.group_scale + at * Dot::kLanes);
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) {
        Dot::store_sum(part, sums[i]);
        total[i] = S::fma(S::from_difference(part, zero), scale, total[i]);
      }
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < T; ++i) S::store(acc + i * ld, total[i]);
  }

 private:
  template <int T>
  static SPARSECORE_INLINE void run_entry(const uint8_t*& slots, int64_t steps, const uint8_t* const* x, int64_t from,
                                          typename Dot::Sum (&sums)[T]) {
    typename Dot::Table table[T];
    SPARSECORE_UNROLL
    for (int i = 0; i < T; ++i) table[i] = Dot::load_table(x[i] + from);
    auto cursor = Dot::first_cursor();
    for (int64_t s = 0; s < steps; ++s) {
      __builtin_prefetch(slots + kPrefetch);
      const auto bytes = Dot::load(slots);
      const auto columns = Dot::columns(bytes, cursor);
      const auto values = Dot::values(bytes);
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) sums[i] = Dot::multiply_add(sums[i], Dot::lookup(table[i], columns), values);
      slots += kQuadBytes;
    }
  }
};

}  // namespace
}  // namespace sparsecore
