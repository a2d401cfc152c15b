// The delta format against plain CSR, and its host decoder, which walks as the CUDA kernel does.
#include "pack/delta.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "csr.h"
#include "guarded.h"
#include "pack/delta_decoder.h"
#include "random.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

// A packed weight in guarded memory.
template <class T>
struct PackedDelta {
  explicit PackedDelta(const Csr<T>& csr)
      : shape{csr.rows, csr.cols},
        quad_ptr(shape.units() + 1, Guard::kAfter),
        codes(count(csr), Guard::kAfter, 4),
        values(codes.size(), Guard::kAfter, 8) {
    for (int64_t n = csr.rows; n-- > 0;) {  // rows are independent of each other
      fill_delta<T>(csr.view(), shape, {n, n + 1}, quad_ptr.data(), codes.data(), values.data());
    }
  }

  DeltaView<T> view() const { return {shape, quad_ptr.data(), codes.data(), values.data(), codes.size() / kDeltaQuad}; }

  DeltaShape shape;
  Buffer<int32_t> quad_ptr;
  Buffer<uint8_t> codes;
  Buffer<T> values;

 private:
  int64_t count(const Csr<T>& csr) {
    count_delta<T>(csr.view(), shape, {0, csr.rows}, quad_ptr.data());
    return running_sum(quad_ptr.data(), shape.units()) * kDeltaQuad;
  }
};

// Columns in clusters and far apart, so that all lengths of gaps occur.
template <class T>
Csr<T> random_weight(Random& random, int64_t rows, int64_t cols) {
  Csr<T> csr{rows, cols, {0}, {}, {}};
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t widest = random.pick<int64_t>({1, 4, 40, 255, 256, 600, 5000});
    for (int64_t k = random.integer(0, widest); k < cols; k += random.integer(1, widest)) {
      csr.col_idx.push_back(static_cast<int32_t>(k));
      csr.values.push_back(random_value<T>(random));
    }
    csr.row_ptr.push_back(static_cast<int32_t>(csr.values.size()));
  }
  return csr;
}

template <class T>
void expect_unpacked(const Csr<T>& csr, const PackedDelta<T>& packed) {
  const Range all{0, csr.rows};
  ASSERT_EQ(validate_delta(packed.view(), all), nullptr);
  std::vector<int32_t> row_ptr(size_t(csr.rows) + 1), col_idx(csr.values.size());
  std::vector<T> values(csr.values.size());
  count_unpacked_delta(packed.view(), all, row_ptr.data());
  ASSERT_EQ(running_sum(row_ptr.data(), csr.rows), csr.nnz());
  unpack_delta(packed.view(), all, row_ptr.data(), col_idx.data(), values.data());
  ASSERT_EQ(row_ptr, csr.row_ptr);
  ASSERT_EQ(col_idx, csr.col_idx);
  ASSERT_EQ(values, csr.values);
}

// The decoder gives every entry in order and nothing else.
template <class T>
void expect_decoded(const Csr<T>& csr, const PackedDelta<T>& packed) {
  for (int64_t n = 0; n < csr.rows; ++n) {
    auto expected = static_cast<size_t>(csr.row_ptr[size_t(n)]);
    for (int64_t panel = 0; panel < packed.shape.panels(); ++panel) {
      const int64_t unit = panel * csr.rows + n;
      const auto check = [&](int64_t col, int64_t at) {
        ASSERT_LT(expected, size_t(csr.row_ptr[size_t(n) + 1]));
        ASSERT_EQ(col + panel * kDeltaPanel, csr.col_idx[expected]);
        ASSERT_EQ(packed.values[at], csr.values[expected]);
        ++expected;
      };
      decode_delta_row(packed.codes.data(), packed.quad_ptr[unit], packed.quad_ptr[unit + 1],
                       delta_panel_cols(csr.cols, panel), check);
    }
    ASSERT_EQ(expected, size_t(csr.row_ptr[size_t(n) + 1]));
  }
}

template <class T>
void expect_exact(const Csr<T>& csr) {
  const PackedDelta<T> packed(csr);
  expect_unpacked(csr, packed);
  expect_decoded(csr, packed);
}

TEST(Delta, ThePictureOfTheHeader) {
  const Csr<uint16_t> csr{1, 1000, {0, 3}, {2, 700, 701}, {0x1111, 0x2222, 0x3333}};
  const PackedDelta<uint16_t> packed(csr);
  EXPECT_EQ(std::vector<uint8_t>(packed.codes.begin(), packed.codes.end()),
            (std::vector<uint8_t>{2, 255, 255, 188, 1, 255, 255, 255}));
  EXPECT_EQ(std::vector<uint16_t>(packed.values.begin(), packed.values.end()),
            (std::vector<uint16_t>{0x1111, 0, 0, 0x2222, 0x3333, 0, 0, 0}));
}

// SPARSECORE_FUZZ_TILES=1000000 takes minutes. A tile is a row of a panel.
int64_t fuzz_units() {
  const char* tiles = std::getenv("SPARSECORE_FUZZ_TILES");
  return tiles == nullptr ? 4000 : std::stoll(tiles);
}

TEST(Delta, PackedRowsAreExact) {
  for (int64_t units = 0, seed = 0; units < fuzz_units(); ++seed) {
    SCOPED_TRACE(seed);
    Random random(static_cast<uint64_t>(seed));
    const int64_t rows = random.integer(1, 40);
    const int64_t cols = random.pick<int64_t>({1, 254, 255, 256, 257, 1000, 4095, 4096, 4097, 8192, 10000});
    if (random.chance(0.5)) {
      expect_exact(random_weight<uint16_t>(random, rows, cols));
    } else {
      expect_exact(random_weight<int8_t>(random, rows, cols));
    }
    if (HasFatalFailure()) return;
    units += rows * delta_panels(cols);
  }
}

TEST(Delta, FullAndEmptyWeights) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 0}, {0, 5}, {5, 0}, {3, 5000}}) {
    expect_exact(Csr<uint16_t>{rows, cols, std::vector<int32_t>(size_t(rows) + 1), {}, {}});
  }
  Random random(1);
  expect_exact(random_csr<int8_t>(random, 3, 5000, Fill::kFull));
}

// Any change of the arrays that would read outside or is not what packing writes is refused; what is accepted is a
// weight.
TEST(Delta, TamperedArraysAreRefusedOrHarmless) {
  int refused = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const int64_t rows = random.integer(1, 5), cols = random.pick<int64_t>({3, 300, 5000});
    PackedDelta<int8_t> packed(random_weight<int8_t>(random, rows, cols));
    const bool is_pointer = random.chance(0.3) || packed.codes.size() == 0;
    if (is_pointer) {
      packed.quad_ptr[random.integer(0, packed.shape.units())] += int32_t(random.pick<int64_t>({-1, 1, 1 << 30}));
    } else {
      packed.codes[random.integer(0, packed.codes.size() - 1)] = static_cast<uint8_t>(random.next());
    }
    if (validate_delta(packed.view(), {0, rows}) != nullptr) {
      ++refused;
      continue;
    }
    // The caller knows where the first row begins and the last one ends.
    if (packed.quad_ptr[0] != 0 || packed.quad_ptr[packed.shape.units()] != packed.view().quads) continue;
    std::vector<int32_t> row_ptr(size_t(rows) + 1);
    count_unpacked_delta(packed.view(), {0, rows}, row_ptr.data());
    const auto nnz = static_cast<size_t>(running_sum(row_ptr.data(), rows));
    Csr<int8_t> csr{rows, cols, row_ptr, std::vector<int32_t>(nnz), std::vector<int8_t>(nnz)};
    unpack_delta(packed.view(), {0, rows}, row_ptr.data(), csr.col_idx.data(), csr.values.data());
    EXPECT_EQ(validate_csr(cols, csr.nnz(), row_ptr.data(), csr.col_idx.data(), {0, rows}), nullptr);
    const PackedDelta<int8_t> again(csr);  // there is one way to write a weight
    EXPECT_TRUE(std::equal(packed.codes.begin(), packed.codes.end(), again.codes.begin(), again.codes.end()));
    EXPECT_TRUE(std::equal(packed.quad_ptr.begin(), packed.quad_ptr.end(), again.quad_ptr.begin()));
  }
  EXPECT_GT(refused, 300);
}

TEST(Delta, BlocksHaveEqualWork) {
  Random random(5);
  const auto csr = random_weight<uint16_t>(random, 300, 9000);
  const PackedDelta<uint16_t> packed(csr);
  const int64_t units = packed.shape.units();
  const auto work = [&](int64_t begin, int64_t end) {
    return double(packed.quad_ptr[end] - packed.quad_ptr[begin]) + 32.0 * double(end - begin);
  };
  double most = 0;
  for (int64_t unit = 0; unit < units; ++unit) most = std::max(most, work(unit, unit + 1));
  for (const int64_t num_blocks : {int64_t(1), int64_t(7), units, 2 * units}) {
    std::vector<int32_t> block_ptr(size_t(num_blocks) + 1);
    split_delta(packed.quad_ptr.data(), units, num_blocks, block_ptr.data());
    EXPECT_EQ(block_ptr.front(), 0);
    EXPECT_EQ(block_ptr.back(), units);
    for (size_t block = 0; block < size_t(num_blocks); ++block) {
      ASSERT_LE(block_ptr[block], block_ptr[block + 1]);
      EXPECT_LE(std::abs(work(block_ptr[block], block_ptr[block + 1]) - work(0, units) / double(num_blocks)), most + 1);
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
