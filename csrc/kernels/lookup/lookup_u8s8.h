// Table lookup, activation bytes x sparse int8 weights: algorithm text.
//
// A step multiplies 4 non-zeros of each row of a block: a byte shuffle brings their activations from the table (the
// activations of one group of columns), a dot product multiplies and adds. Columns and values are loaded once for all
// positions of a tile. A wrapper defines Dot with
//   kLanes, kPositions, kTable, kByteOffset, kNeedsSafePairs;
//   Sum, Bytes, Table: sums of the lanes; a quad of each lane; kTable activations;
//   zero(), add(Sum, Sum), store(int32_t*, Sum), load(const uint8_t*), load_table(const uint8_t*), lookup(table,
//   columns); multiply_add(sum, activations, values): exact, if pairs of values are safe where the packing says so.
#pragma once

#include "kernels/int8_product.h"
#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

template <class Dot>
struct LookupU8S8 {
  using Args = LookupInt8Args;
  static constexpr int kBlocks = 1, kPositions = Dot::kPositions;
  static constexpr int32_t kByteOffset = Dot::kByteOffset;
  static constexpr bool kWidens = false;
  static constexpr int64_t kQuadBytes = 4 * Dot::kLanes;
  // Bytes ahead. Slots come from far away once per tile, through a stream with gaps for the prefetcher: 4096x4096 at
  // 90% zeros, 16 positions: 1.2 -> 0.85 ms; 1 position and weights in cache: no difference.
  static constexpr int64_t kPrefetch = 2048;

  static bool supports(const LookupView& weight) {
    return weight.lanes == Dot::kLanes && weight.table == Dot::kTable &&
           (weight.has_safe_pairs || !Dot::kNeedsSafePairs);
  }
  static int64_t num_offsets(const LookupView& weight) { return weight.segments * weight.groups(); }
  static void fill_offsets(const Args& args, int64_t* offset) {
    const int64_t groups = args.weight.groups();
    for (int64_t s = 0; s < args.weight.segments; ++s) {
      for (int64_t g = 0; g < groups; ++g) offset[s * groups + g] = args.x.segment_offset[s] + g * Dot::kTable;
    }
  }

  static void put_in_order(const int32_t* place, int32_t* sums)
    requires requires { Dot::put_in_order(place, sums); }
  {
    Dot::put_in_order(place, sums);
  }

  template <int NB, int T>
  static void accumulate(const LookupView& weight, int64_t block, const uint8_t* const* x, const int64_t* offset,
                         int32_t* acc, int64_t ld) {
    // A dot product takes 4 to 5 cycles: a few positions need several sums each to keep its unit busy.
    constexpr int kChains = T >= 4 ? 1 : 4 / T;
    Chains<T * kChains> sums;
    SPARSECORE_UNROLL
    for (int i = 0; i < T * kChains; ++i) sums.of[i] = Dot::zero();
    Entries entries{weight.entry_group + weight.entry_ptr[block], weight.entry_steps + weight.entry_ptr[block],
                    weight.entry_ptr[block + 1] - weight.entry_ptr[block],
                    weight.slots + int64_t(weight.step_ptr[block]) * 2 * kQuadBytes};
    static_assert(kMaxLookupSteps == 6);
    run_entries<T, kChains, 1>(entries, x, offset, sums);
    run_entries<T, kChains, 2>(entries, x, offset, sums);
    run_entries<T, kChains, 3>(entries, x, offset, sums);
    run_entries<T, kChains, 4>(entries, x, offset, sums);
    run_entries<T, kChains, 5>(entries, x, offset, sums);
    run_entries<T, kChains, 6>(entries, x, offset, sums);
    SPARSECORE_UNROLL
    for (int i = 0; i < T; ++i) {
      SPARSECORE_UNROLL
      for (int c = 1; c < kChains; ++c) sums.of[i * kChains] = Dot::add(sums.of[i * kChains], sums.of[i * kChains + c]);
      Dot::store(acc + i * ld, sums.of[i * kChains]);
    }
  }

 private:
  template <int Size>
  struct Chains {
    typename Dot::Sum of[Size];
  };
  struct Entries {
    const uint16_t* group;
    const uint8_t* steps;
    int64_t left;
    const uint8_t* slots;
  };

  // The next entries, as long as they have `Steps` steps.
  template <int T, int kChains, int Steps>
  static SPARSECORE_INLINE void run_entries(Entries& entries, const uint8_t* const* x, const int64_t* offset,
                                            Chains<T * kChains>& sums) {
    while (entries.left > 0 && *entries.steps == Steps) {
      typename Dot::Bytes columns[Steps], values[Steps];
      SPARSECORE_UNROLL
      for (int s = 0; s < Steps; ++s) {
        __builtin_prefetch(entries.slots + kPrefetch + 2 * s * kQuadBytes);
        __builtin_prefetch(entries.slots + kPrefetch + (2 * s + 1) * kQuadBytes);
        columns[s] = Dot::load(entries.slots + 2 * s * kQuadBytes);
        values[s] = Dot::load(entries.slots + (2 * s + 1) * kQuadBytes);
      }
      const int64_t from = offset[*entries.group];
      // Two positions in turn: the sums of one alone would wait for each other.
      constexpr int kPair = T >= 2 ? 2 : 1;
      SPARSECORE_UNROLL
      for (int i = 0; i < T; i += kPair) {
        typename Dot::Table table[kPair];
        SPARSECORE_UNROLL
        for (int p = 0; p < kPair; ++p) table[p] = Dot::load_table(x[i + p] + from);
        SPARSECORE_UNROLL
        for (int s = 0; s < Steps; ++s) {
          SPARSECORE_UNROLL
          for (int p = 0; p < kPair; ++p) {
            auto& sum = sums.of[(i + p) * kChains + s % kChains];
            sum = Dot::multiply_add(sum, Dot::lookup(table[p], columns[s]), values[s]);
          }
        }
      }
      entries.slots += 2 * Steps * kQuadBytes;
      ++entries.group;
      ++entries.steps;
      --entries.left;
    }
  }
};

}  // namespace
}  // namespace sparsecore
