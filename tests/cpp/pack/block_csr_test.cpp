#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "packed.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

using Packed = PackedWeight<BlockCsrView<float>>;

template <class T>
std::vector<T> content(const Buffer<T>& buffer) {
  return {buffer.begin(), buffer.end()};
}

// The picture in views.h, with a row pair more.
TEST(BlockCsr, ThePictureOfTheHeader) {
  const Csr<float> csr{4, 3, {0, 2, 3, 3, 4}, {0, 2, 0, 1}, {5, 7, 1, 4}};
  const Packed packed(csr, {.csr_block_rows = 2}, Guard::kAfter);
  EXPECT_EQ(content(packed.row_ptr), (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(content(packed.col_idx), (std::vector<int32_t>{0, 2, 1}));
  EXPECT_EQ(content(packed.values), (std::vector<float>{5, 1, 7, 0, 0, 4}));
  EXPECT_EQ(packed.view().num_blocks(), 2);
}

bool equal_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// A column is there for all rows of a block if any of them has it, with zeros where one has not.
TEST(BlockCsr, HoldsTheColumnsThatAnyRowOfABlockHas) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    const int64_t R = random.integer(1, kMaxBlockCsrRows);
    const int64_t rows = R * random.pick<int64_t>({0, 1, 2, 9}), cols = random.pick<int64_t>({0, 1, 2, 17, 300});
    const Case trace("seed ", seed, ": ", rows, "x", cols, " in blocks of ", R, " rows");
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    Csr<float> csr = random_csr<float>(random, rows, cols, random.pick(kAllFills));
    for (float& value : csr.values) {
      if (random.chance(0.1)) value = random.any_float();  // also NaN, -0.0 and other zeros that a mask kept
    }
    const Packed packed(csr, {.csr_block_rows = R}, guard);
    const Csr<float> expected = with_whole_blocks(csr, R);
    ASSERT_EQ(validate_csr(cols, packed.col_idx.size(), packed.row_ptr.data(), packed.col_idx.data(), {0, rows / R}),
              nullptr);
    ASSERT_EQ(packed.values.size(), expected.nnz());
    for (int64_t n = 0; n < rows; ++n) {
      int64_t i = packed.row_ptr[n / R];
      for_each_entry(expected, n, [&](int32_t k, float value) {
        ASSERT_EQ(packed.col_idx[i], k) << "row " << n;
        ASSERT_TRUE(equal_bits(packed.values[i * R + n % R], value)) << "row " << n << ", column " << k;
        ++i;
      });
      ASSERT_EQ(i, packed.row_ptr[n / R + 1]);
    }
  }
}

TEST(BlockCsr, AnyPartsOfTheBlocksGiveTheSameArrays) {
  for (uint64_t seed = 1000; seed < 1200; ++seed) {
    Random random(seed);
    const int64_t R = random.pick<int64_t>({4, 8}), num_blocks = random.integer(1, 20);
    const Case trace("seed ", seed, ": ", num_blocks, " blocks of ", R, " rows");
    const Csr<float> csr = random_csr<float>(random, num_blocks * R, 40, random.pick(kAllFills));
    const Packed whole(csr, {.csr_block_rows = R}, Guard::kAfter);
    Buffer<int32_t> block_ptr(num_blocks + 1, Guard::kAfter), col_idx(whole.col_idx.size(), Guard::kAfter);
    Buffer<float> values(whole.values.size(), Guard::kAfter);
    const int64_t cut = random.integer(0, num_blocks);
    block_ptr[0] = 0;
    for (const Range& part : {Range{cut, num_blocks}, Range{0, cut}}) {
      count_block_csr(csr.view(), R, part, block_ptr.data());
    }
    ASSERT_EQ(running_sum(block_ptr.data(), num_blocks), whole.col_idx.size());
    for (const Range& part : {Range{cut, num_blocks}, Range{0, cut}}) {
      fill_block_csr(csr.view(), R, part, block_ptr.data(), col_idx.data(), values.data());
    }
    EXPECT_EQ(content(block_ptr), content(whole.row_ptr));
    EXPECT_EQ(content(col_idx), content(whole.col_idx));
    EXPECT_EQ(content(values), content(whole.values));
  }
}

// The last column that an index can name.
TEST(BlockCsr, ColumnsUpToTheLargestIndex) {
  constexpr int32_t kLast = std::numeric_limits<int32_t>::max() - 1;
  const Csr<float> csr{4, int64_t(kLast) + 1, {0, 1, 2, 2, 3}, {kLast, 0, kLast}, {1, 2, 3}};
  const Packed packed(csr, {.csr_block_rows = 4}, Guard::kAfter);
  EXPECT_EQ(content(packed.col_idx), (std::vector<int32_t>{0, kLast}));
  EXPECT_EQ(content(packed.values), (std::vector<float>{0, 2, 0, 0, 1, 0, 0, 3}));
}

}  // namespace
}  // namespace sparsecore::test
