#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "numbers.h"
#include "packed.h"
#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

using Packed = PackedWeight<BitmapView>;

template <class T>
std::vector<T> content(const Buffer<T>& buffer) {
  return {buffer.begin(), buffer.end()};
}

template <class T>
bool same_bytes(const Buffer<T>& buffer, const std::vector<T>& expected) {
  return buffer.size() == static_cast<int64_t>(expected.size()) &&
         (expected.empty() || std::memcmp(buffer.data(), expected.data(), expected.size() * sizeof(T)) == 0);
}

std::vector<float> with_slack(std::vector<float> values) {
  values.resize(values.size() + kBitmapSlack);
  return values;
}

// The picture in views.h.
TEST(Bitmap, ThePictureOfTheHeader) {
  const Csr<float> csr{2, 3, {0, 2, 4}, {0, 2, 0, 1}, {5, 7, 1, 2}};
  const Packed packed(csr, Packing{}, Guard::kAfter);
  EXPECT_EQ(content(packed.block_ptr), (std::vector<int32_t>{0, 4}));
  EXPECT_EQ(content(packed.masks), (std::vector<uint16_t>{0b11, 0b10, 0b01}));
  EXPECT_EQ(content(packed.values), with_slack({5, 1, 2, 7}));
}

TEST(Bitmap, BlocksHave16Rows) {
  Csr<float> csr{18, 2, {0}, {}, {}};
  for (int32_t n = 0; n < 18; ++n) {  // row n has n + 1 in column n % 2
    csr.col_idx.push_back(n % 2);
    csr.values.push_back(static_cast<float>(n + 1));
    csr.row_ptr.push_back(n + 1);
  }
  const Packed packed(csr, Packing{}, Guard::kAfter);
  EXPECT_EQ(content(packed.block_ptr), (std::vector<int32_t>{0, 16, 18}));
  EXPECT_EQ(content(packed.masks), (std::vector<uint16_t>{0x5555, 0xaaaa, 1, 2}));
  EXPECT_EQ(content(packed.values), with_slack({1, 3, 5, 7, 9, 11, 13, 15, 2, 4, 6, 8, 10, 12, 14, 16, 17, 18}));
}

// Calls function for ranges that together are all blocks, in random order.
template <class Function>
void for_block_parts(Random& random, int64_t num_blocks, Function function) {
  std::vector<Range> parts;
  for (int64_t block = 0; block < num_blocks;) {
    const int64_t end = random.integer(block + 1, num_blocks);
    const int64_t place = random.integer(0, static_cast<int64_t>(parts.size()));
    parts.insert(parts.begin() + place, Range{block, end});
    block = end;
  }
  for (const Range& part : parts) function(part);
}

template <class T>
Csr<T> random_weight(Random& random) {
  Csr<T> csr = random_csr<T>(random, random.pick<int64_t>({0, 1, 2, 15, 16, 17, 40, 300}),
                             random.pick<int64_t>({0, 1, 2, 3, 4, 5, 90, 600}), random.pick(kAllFills));
  if constexpr (std::is_same_v<T, float>) {
    for (float& value : csr.values) {
      if (random.chance(0.1)) value = random.any_float();  // also NaN, -0.0 and other zeros that a mask kept
    }
  }
  return csr;
}

// Packed in one piece and unpacked in parts is the weight again; packed in parts gives the same arrays.
template <class T, class Values>
void check_round_trip(Random& random, const Csr<T>& csr, const Packed& packed, Values values_of, Guard guard) {
  const int64_t num_blocks = packed.num_rows();
  ASSERT_EQ(validate_bitmap(packed.view(), {0, num_blocks}), nullptr);
  Buffer<int32_t> row_ptr(csr.rows + 1, guard), col_idx(csr.nnz(), guard);
  Buffer<T> values(csr.nnz(), guard);
  for_block_parts(random, num_blocks, [&](Range blocks) { count_unpacked(packed.view(), blocks, row_ptr.data()); });
  ASSERT_EQ(running_sum(row_ptr.data(), csr.rows), csr.nnz());
  for_block_parts(random, num_blocks, [&](Range blocks) {
    unpack_bitmap<T>(packed.view(), blocks, row_ptr.data(), col_idx.data(), values.data());
  });
  ASSERT_EQ(content(row_ptr), csr.row_ptr);
  ASSERT_EQ(content(col_idx), csr.col_idx);
  ASSERT_TRUE(same_bytes(values, csr.values));

  Buffer<int32_t> block_ptr(num_blocks + 1, guard);
  Buffer<uint16_t> masks(packed.masks.size(), guard);
  Buffer<T> in_parts(csr.nnz(), guard);
  block_ptr[0] = 0;
  for_block_parts(random, num_blocks, [&](Range blocks) {
    fill_bitmap<T>(csr.view(), blocks, {block_ptr.data(), masks.data(), in_parts.data()});
  });
  ASSERT_EQ(content(block_ptr), content(packed.block_ptr));
  ASSERT_EQ(content(masks), content(packed.masks));
  std::vector<T> whole = content(values_of(packed));
  whole.resize(static_cast<size_t>(csr.nnz()));
  ASSERT_TRUE(same_bytes(in_parts, whole));
}

TEST(Bitmap, PacksAndUnpacksInAnyPartsWithTheSameBits) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    if (seed % 2 == 0) {
      const Csr<float> csr = random_weight<float>(random);
      const Case trace("seed ", seed, ": ", csr.rows, "x", csr.cols);
      const Packed packed(csr, Packing{}, guard);
      check_round_trip(random, csr, packed, [](const Packed& p) -> const auto& { return p.values; }, guard);
    } else {
      const Csr<uint16_t> csr = random_weight<uint16_t>(random);
      const Case trace("seed ", seed, ": ", csr.rows, "x", csr.cols, ", 16 bits");
      const Packed packed(csr, random.pick({Dtype::kBFloat16, Dtype::kFloat16}), guard);
      check_round_trip(random, csr, packed, [](const Packed& p) -> const auto& { return p.narrow_values; }, guard);
    }
    if (::testing::Test::HasFailure()) return;
  }
}

// Runs every enabled kernel on a weight that validation let through: no fault, and every output a finite number.
void check_kernels_survive(const Packed& packed) {
  const BitmapView weight = packed.view();
  for (const int64_t columns : {1, 5}) {
    Buffer<float> x(weight.cols * columns, Guard::kAfter);
    std::fill(x.begin(), x.end(), 0.5f);
    for (const Kernel<SpmmBitmapArgs>& kernel : spmm_bitmap_kernels()) {
      if (!isa_enabled(kernel.isa)) continue;
      Buffer<float> y = unwritten_output(weight.rows * columns, Guard::kAfter);
      SpmmBitmapArgs args;
      args.weight = weight;
      args.columns = columns;
      args.x = x.data();
      args.ldx = weight.cols;
      args.y = y.data();
      args.ldy = weight.rows;
      run_all(kernel, args, packed.num_rows(), Guard::kAfter);
      const bool is_finite = std::all_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); });
      ASSERT_TRUE(is_finite) << kernel.name << " leaves outputs unwritten or uses numbers that are not there";
    }
  }
}

TEST(ValidateBitmap, FindsEachKindOfDamage) {
  for (uint64_t seed = 0; seed < 800; ++seed) {
    Random random(seed);
    const Csr<float> csr = random_csr<float>(random, random.integer(33, 47), random.integer(5, 30), Fill::kHalf);
    Packed packed(csr, Packing{}, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    const int64_t block = random.integer(0, packed.num_rows() - 1), k = random.integer(0, csr.cols - 1);
    const char* damage = nullptr;
    switch (seed % 8) {
      case 0:
        damage = "block_ptr negative";
        packed.block_ptr[block] = -1;
        break;
      case 1:
        damage = "block_ptr descends";
        packed.block_ptr[block + 1] = packed.block_ptr[block] - 1;
        break;
      case 2:
        damage = "block_ptr past the values";
        packed.block_ptr[block + 1] = static_cast<int32_t>(csr.nnz()) + 1;
        break;
      case 3:
        damage = "block_ptr far away";
        packed.block_ptr[block + 1] = std::numeric_limits<int32_t>::max();
        break;
      case 4:
        damage = "block_ptr one too high";
        if (block + 1 == packed.num_rows()) continue;
        ++packed.block_ptr[block + 1];
        break;
      case 5:
        damage = "a bit more";
        if (packed.masks[block * csr.cols + k] & 1) continue;
        packed.masks[block * csr.cols + k] |= 1;
        break;
      case 6:
        damage = "a bit less";
        if ((packed.masks[block * csr.cols + k] & 1) == 0) continue;
        packed.masks[block * csr.cols + k] &= 0xfffe;
        break;
      case 7: {
        damage = "an entry in a row past N";
        uint16_t& mask = packed.masks[2 * csr.cols + k];
        if ((mask & 1) == 0) continue;
        mask = static_cast<uint16_t>((mask & 0xfffe) | 0x8000);
        break;
      }
    }
    const Case trace("seed ", seed, ": ", damage);
    EXPECT_NE(validate_bitmap(packed.view(), {0, packed.num_rows()}), nullptr);
    if (::testing::Test::HasFailure()) return;
  }
}

// Only the blocks asked for are looked at, so that each thread checks its own.
TEST(ValidateBitmap, OtherBlocksDoNotMatter) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr = random_csr<float>(random, 70, 20, Fill::kHalf);
    Packed packed(csr, Packing{}, Guard::kAfter);
    const int64_t num_blocks = packed.num_rows(), block = random.integer(0, num_blocks - 1);
    packed.masks[block * csr.cols + random.integer(0, csr.cols - 1)] ^= 1;
    for (int64_t other = 0; other < num_blocks; ++other) {
      EXPECT_EQ(validate_bitmap(packed.view(), {other, other + 1}) == nullptr, other != block);
    }
    EXPECT_NE(validate_bitmap(packed.view(), {0, num_blocks}), nullptr);
    EXPECT_EQ(validate_bitmap(packed.view(), {block, block}), nullptr);
  }
}

// Whatever a few wrong numbers make of a weight: it is either refused, or safe to run.
TEST(ValidateBitmap, WhatItAcceptsIsSafe) {
  int num_accepted = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr =
        random_csr<float>(random, random.integer(1, 70), random.integer(1, 12), random.pick(kAllFills));
    Packed packed(csr, {.value_dtype = random.pick(kAllDtypes)}, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    for (int64_t i = random.integer(1, 3); i > 0; --i) {
      if (random.chance(0.3)) {
        int32_t& value = packed.block_ptr[random.integer(0, packed.block_ptr.size() - 1)];
        value = static_cast<int32_t>(random.chance(0.5) ? value + random.integer(-1, 1)
                                                        : random.integer(-2, csr.nnz() + 2));
      } else {  // the number of bits stays, or it changes by one
        uint16_t& mask = packed.masks[random.integer(0, packed.masks.size() - 1)];
        mask = random.chance(0.7) ? std::rotl(mask, static_cast<int>(random.integer(1, 15)))
                                  : static_cast<uint16_t>(mask ^ 1 << random.integer(0, 15));
      }
    }
    if (validate_bitmap(packed.view(), {0, packed.num_rows()}) != nullptr) continue;
    ++num_accepted;
    check_kernels_survive(packed);
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(num_accepted, 500);
}

}  // namespace
}  // namespace sparsecore::test
