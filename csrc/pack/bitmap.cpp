#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "simd/target.h"
#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

constexpr int64_t kRows = kBitmapBlockRows;

Range rows_of_block(int64_t rows, int64_t block) { return {block * kRows, std::min((block + 1) * kRows, rows)}; }

// function(column, row in the block) for the entries of a block, by column and in it by row.
template <class Function>
void for_each_entry(const uint16_t* masks, int64_t cols, Function function) {
  for (int64_t k = 0; k < cols; ++k) {
    for (uint32_t mask = masks[k]; mask != 0; mask &= mask - 1) {
      function(k, static_cast<size_t>(std::countr_zero(mask)));
    }
  }
}

// Bits of `count` masks, and in `all` those that any of them has.
SPARSECORE_INLINE int64_t count_bits_text(const uint16_t* masks, int64_t count, uint16_t& all) {
  int64_t bits = 0, k = 0;
  uint64_t any = 0;
  for (; k + 4 <= count; k += 4) {
    uint64_t four;
    std::memcpy(&four, masks + k, sizeof(four));
    bits += __builtin_popcountll(four);
    any |= four;
  }
  for (; k < count; ++k) {
    bits += __builtin_popcountll(masks[k]);
    any |= masks[k];
  }
  any |= any >> 32;
  all = static_cast<uint16_t>(any | any >> 16);
  return bits;
}

int64_t count_bits_portable(const uint16_t* masks, int64_t count, uint16_t& all) {
  return count_bits_text(masks, count, all);
}

// Checked in every call, by an instruction that the x86-64 base lacks and every processor since 2008 has.
#if defined(__x86_64__)
SPARSECORE_TARGET_BEGIN("popcnt")
int64_t count_bits_popcnt(const uint16_t* masks, int64_t count, uint16_t& all) {
  return count_bits_text(masks, count, all);
}
SPARSECORE_TARGET_END
#endif

int64_t count_bits(const uint16_t* masks, int64_t count, uint16_t& all) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("popcnt")) return count_bits_popcnt(masks, count, all);
#endif
  return count_bits_portable(masks, count, all);
}

}  // namespace

template <class T>
void fill_bitmap(const CsrView<T>& weight, Range blocks, const BitmapArrays<T>& out) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = rows_of_block(weight.rows, block);
    uint16_t* masks = out.masks + block * weight.cols;
    std::fill_n(masks, weight.cols, uint16_t(0));
    std::array<int32_t, kRows> next{};
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      const auto r = static_cast<size_t>(n - rows.begin);
      const auto bit = static_cast<uint16_t>(1u << r);
      next[r] = weight.row_ptr[n];
      for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) masks[weight.col_idx[i]] |= bit;
    }
    out.block_ptr[block + 1] = weight.row_ptr[rows.end];
    T* values = out.values + weight.row_ptr[rows.begin];
    for_each_entry(masks, weight.cols, [&](int64_t, size_t r) { *values++ = weight.values[next[r]++]; });
  }
}

void count_unpacked(const BitmapView& weight, Range blocks, int32_t* row_ptr) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    std::array<int32_t, kRows> counts{};
    for_each_entry(weight.masks + block * weight.cols, weight.cols, [&](int64_t, size_t r) { ++counts[r]; });
    const Range rows = rows_of_block(weight.rows, block);
    std::copy_n(counts.begin(), rows.size(), row_ptr + rows.begin + 1);
  }
}

template <class T>
void unpack_bitmap(const BitmapView& weight, Range blocks, const int32_t* row_ptr, int32_t* col_idx, T* values) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = rows_of_block(weight.rows, block);
    std::array<int32_t, kRows> next{};
    std::copy_n(row_ptr + rows.begin, rows.size(), next.begin());
    const T* from = static_cast<const T*>(weight.values) + weight.block_ptr[block];
    for_each_entry(weight.masks + block * weight.cols, weight.cols, [&](int64_t k, size_t r) {
      const int32_t to = next[r]++;
      col_idx[to] = static_cast<int32_t>(k);
      values[to] = *from++;
    });
  }
}

const char* validate_bitmap(const BitmapView& weight, Range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t begin = weight.block_ptr[block], end = weight.block_ptr[block + 1];
    if (begin < 0 || begin > end || end > weight.nnz) return "block_ptr must rise from 0 to the number of values";
    uint16_t all = 0;
    const int64_t bits = count_bits(weight.masks + block * weight.cols, weight.cols, all);
    if (bits != end - begin) return "masks must have as many bits as their block has values";
    if (all >> rows_of_block(weight.rows, block).size() != 0) return "masks must have no bits of rows past N";
  }
  return nullptr;
}

#define SPARSECORE_INSTANTIATE(T)                                                 \
  template void fill_bitmap<T>(const CsrView<T>&, Range, const BitmapArrays<T>&); \
  template void unpack_bitmap<T>(const BitmapView&, Range, const int32_t*, int32_t*, T*);
SPARSECORE_INSTANTIATE(float)
SPARSECORE_INSTANTIATE(uint16_t)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
