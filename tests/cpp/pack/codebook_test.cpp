#include "sparsecore/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "packed.h"
#include "random.h"

namespace sparsecore::test {
namespace {

using Packed = PackedWeight<CodebookView>;

Csr<float> random_weight(Random& random) {
  Csr<float> csr = random_csr<float>(random, random.integer(1, 70), random.integer(1, 12), random.pick(kAllFills));
  for (float& value : csr.values) value = float(random.integer(1, 9));
  return csr;
}

Packed pack(Random& random, const Csr<float>& csr) {
  const Packing packing{.block_rows = random.pick<int64_t>({1, 7, 16, 1024}), .gap_bits = random.integer(1, 8)};
  return Packed(csr, packing, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
}

// The picture in codebook.h.
TEST(Codebook, ThePictureOfTheHeader) {
  const Csr<float> csr{3, 2, {0, 1, 2, 2}, {0, 1}, {5, 4}};
  const Packed packed(csr, Packing{.block_rows = 2, .gap_bits = 1}, Guard::kAfter);
  EXPECT_EQ(packed.view().nnz, 3);
  EXPECT_EQ(packed.gaps[0], 0b110);
  EXPECT_EQ(std::vector<int32_t>(packed.segment_ptr.begin(), packed.segment_ptr.end()),
            (std::vector<int32_t>{0, 1, 2, 3, 3}));
  EXPECT_EQ(std::vector<uint8_t>(packed.segment_zeros.begin(), packed.segment_zeros.end()),
            (std::vector<uint8_t>{0, 1, 0, 0}));
}

TEST(Codebook, MultipliesAreTheEntriesOfColumnsThatAreNotZero) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr = random_weight(random);
    const Packed packed = pack(random, csr);
    Buffer<float> x(csr.cols, Guard::kAfter);
    for (float& value : x) value = random.chance(0.5) ? 0.0f : random.number_or_special(0.1);
    int64_t expected = 0;
    for (const int32_t k : csr.col_idx) expected += x[k] != 0.0f;
    EXPECT_EQ(count_codebook_multiplies(packed.view(), x.data()), expected);
  }
}

TEST(ValidateCodebook, FindsPointersThatFallOrLeaveTheEntries) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr = random_weight(random);
    Packed packed = pack(random, csr);
    const Range all{0, packed.num_rows()};
    ASSERT_EQ(validate_codebook(packed.view(), all), nullptr);
    const int64_t place = random.integer(0, packed.segment_ptr.size() - 1);
    packed.segment_ptr[place] = random.pick({-1, static_cast<int32_t>(packed.view().nnz) + 1,
                                             std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()});
    EXPECT_NE(validate_codebook(packed.view(), all), nullptr);
  }
}

// No field can lead a kernel out of its memory, whatever it holds.
TEST(ValidateCodebook, WhatItAcceptsIsSafe) {
  int num_accepted = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr = random_weight(random);
    Packed packed = pack(random, csr);
    for (int64_t i = random.integer(1, 3); i > 0; --i) {
      const auto damage = [&](Buffer<uint8_t>& bytes) {
        bytes[random.integer(0, bytes.size() - 1)] = static_cast<uint8_t>(random.integer(0, 255));
      };
      if (random.chance(0.5)) damage(packed.codes);
      if (random.chance(0.5)) damage(packed.gaps);
      if (random.chance(0.5)) damage(packed.segment_zeros);
      if (random.chance(0.3)) packed.segment_ptr[random.integer(0, packed.segment_ptr.size() - 1)] += 1;
    }
    const CodebookView weight = packed.view();
    if (validate_codebook(weight, {0, packed.num_rows()}) != nullptr) continue;
    ++num_accepted;
    for (const int64_t columns : {1, 5}) {
      Buffer<float> x(weight.cols * columns, Guard::kAfter);
      std::fill(x.begin(), x.end(), 0.5f);
      for (const Kernel<SpmmCodebookArgs>& kernel : spmm_codebook_kernels()) {
        if (!isa_enabled(kernel.isa)) continue;
        Buffer<float> y = unwritten_output(weight.rows * columns, Guard::kAfter);
        SpmmCodebookArgs args;
        args.weight = weight;
        args.columns = columns;
        args.x = x.data();
        args.ldx = weight.cols;
        args.y = y.data();
        args.ldy = weight.rows;
        run_all(kernel, args, packed.num_rows(), Guard::kAfter);
        ASSERT_TRUE(std::all_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); })) << kernel.name;
      }
    }
  }
  EXPECT_GT(num_accepted, 1000);
}

}  // namespace
}  // namespace sparsecore::test
