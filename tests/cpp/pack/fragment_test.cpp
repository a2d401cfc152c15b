// The fragment format against dense arrays, and its host decoder, which walks as the CUDA kernels do.
#include "pack/fragment.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "csr.h"
#include "guarded.h"
#include "pack/fragment_decoder.h"
#include "random.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

constexpr int kAllBits[] = {16, 8, 4};

// A packed weight in guarded memory.
template <class T>
struct PackedFragment {
  PackedFragment(const Csr<T>& csr, int value_bits, const std::vector<uint16_t>& scales = {})
      : shape{csr.rows, csr.cols, value_bits},
        tile_ptr(shape.num_tiles() + 1, Guard::kAfter),
        blob(pack(csr, scales)) {}

  // A copy with nothing behind it.
  Buffer<uint8_t> tile(int64_t number) const {
    const uint8_t* begin = blob.data() + int64_t(tile_ptr[number]) * kFragmentUnit;
    const uint8_t* end = blob.data() + int64_t(tile_ptr[number + 1]) * kFragmentUnit;
    return Buffer<uint8_t>({begin, end}, Guard::kAfter);
  }
  FragmentView view() const { return {shape, tile_ptr.data(), blob.data(), blob.size()}; }

  FragmentShape shape;
  Buffer<int32_t> tile_ptr;
  Buffer<uint8_t> blob;

 private:
  Buffer<uint8_t> pack(const Csr<T>& csr, const std::vector<uint16_t>& scales) {
    const Range all{0, shape.row_tiles()};
    tile_ptr[0] = 0;
    count_fragment<T>(csr.view(), shape, all, tile_ptr.data());
    const int64_t units = running_sum(tile_ptr.data(), shape.num_tiles());
    Buffer<uint8_t> bytes(units * kFragmentUnit, Guard::kAfter, kFragmentUnit);
    for (int64_t r = all.end; r-- > 0;) {
      fill_fragment<T>(csr.view(), shape, scales.data(), {r, r + 1}, tile_ptr.data(), bytes.data());
    }
    return bytes;
  }
};

template <class T>
T random_stored(Random& random, int value_bits) {
  if (value_bits == 4) return static_cast<T>(random.integer(-8, 7));
  return static_cast<T>(random.next());
}

template <class T>
Csr<T> random_weight(Random& random, int value_bits, int64_t rows, int64_t cols, double density) {
  Csr<T> csr{rows, cols, {0}, {}, {}};
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) {
      if (!random.chance(density)) continue;
      csr.col_idx.push_back(static_cast<int32_t>(k));
      csr.values.push_back(random_stored<T>(random, value_bits));
    }
    csr.row_ptr.push_back(static_cast<int32_t>(csr.values.size()));
  }
  return csr;
}

uint16_t stored_bits(uint16_t value, int) { return value; }
uint16_t stored_bits(int8_t value, int value_bits) {
  return value_bits == 4 ? static_cast<uint16_t>(value + 8) : static_cast<uint8_t>(value);
}

// The decoder gives every entry and nothing else, and reads no byte past a tile.
template <class T>
void expect_decoded(const Csr<T>& csr, const PackedFragment<T>& packed) {
  const FragmentShape& shape = packed.shape;
  std::vector<uint16_t> values(static_cast<size_t>(csr.rows * csr.cols));
  std::vector<bool> present(values.size());
  for (int64_t tile = 0; tile < shape.num_tiles(); ++tile) {
    uint16_t tile_values[64][64];
    bool tile_present[64][64];
    decode_fragment_tile(packed.tile(tile).data(), shape.value_bits, tile_values, tile_present);
    for (int64_t r = 0; r < 64; ++r) {
      for (int64_t k = 0; k < 64; ++k) {
        const int64_t row = tile / shape.col_tiles() * 64 + r, col = tile % shape.col_tiles() * 64 + k;
        if (row >= csr.rows || col >= csr.cols) {
          ASSERT_FALSE(tile_present[r][k]);
          continue;
        }
        values[size_t(row * csr.cols + col)] = tile_values[r][k];
        present[size_t(row * csr.cols + col)] = tile_present[r][k];
      }
    }
  }
  std::vector<uint16_t> expected(values.size());
  std::vector<bool> kept(values.size());
  for (int64_t n = 0; n < csr.rows; ++n) {
    for (int64_t i = csr.row_ptr[size_t(n)]; i < csr.row_ptr[size_t(n) + 1]; ++i) {
      const auto at = size_t(n * csr.cols + csr.col_idx[size_t(i)]);
      expected[at] = stored_bits(csr.values[size_t(i)], shape.value_bits);
      kept[at] = true;
    }
  }
  ASSERT_EQ(present, kept);
  ASSERT_EQ(values, expected);
}

// Every tile alone in guarded memory.
template <class T>
void decode_all(const PackedFragment<T>& packed) {
  for (int64_t tile = 0; tile < packed.shape.num_tiles(); ++tile) {
    uint16_t values[64][64];
    bool present[64][64];
    decode_fragment_tile(packed.tile(tile).data(), packed.shape.value_bits, values, present);
  }
}

template <class T>
void expect_unpacked(const Csr<T>& csr, const PackedFragment<T>& packed) {
  const Range all{0, packed.shape.row_tiles()};
  ASSERT_EQ(validate_fragment(packed.view(), all), nullptr);
  std::vector<int32_t> row_ptr(size_t(csr.rows) + 1), col_idx(csr.values.size());
  std::vector<T> values(csr.values.size());
  count_unpacked(packed.view(), all, row_ptr.data());
  ASSERT_EQ(running_sum(row_ptr.data(), csr.rows), csr.nnz());
  unpack_fragment<T>(packed.view(), all, row_ptr.data(), col_idx.data(), values.data());
  ASSERT_EQ(row_ptr, csr.row_ptr);
  ASSERT_EQ(col_idx, csr.col_idx);
  ASSERT_EQ(values, csr.values);
}

// The picture of fragment_layout.h: where single entries of the first tile go.
TEST(Fragment, ThePictureOfTheHeader) {
  Csr<uint16_t> weight{64, 64, {}, {3, 5, 40}, {0x1111, 0x2222, 0x3333}};
  for (int n = 0; n <= 64; ++n) weight.row_ptr.push_back(n == 0 ? 0 : n <= 9 ? 1 : n <= 17 ? 2 : 3);  // rows 0, 9, 17
  const PackedFragment<uint16_t> packed(weight, 16);
  ASSERT_EQ(packed.blob.size(), 512 + 16);
  const auto word = [&](int number) {
    uint32_t bits;
    std::memcpy(&bits, packed.blob.data() + 4 * number, 4);
    return bits;
  };
  EXPECT_EQ(word(0), 1u << 3);              // row 0: half 0, word 0
  EXPECT_EQ(word(1), 1u << (16 + 5));       // row 9: half 1, row 1 of it
  EXPECT_EQ(word(3 * 16), 1u << (16 + 8));  // row 17, column 40: half 12, word 0, which lane 4 * 3 holds
  const std::vector<uint8_t> values(packed.blob.data() + 512, packed.blob.data() + 518);
  EXPECT_EQ(values, (std::vector<uint8_t>{0x11, 0x11, 0x22, 0x22, 0x33, 0x33}));
}

template <class T>
void expect_exact(Random& random, int value_bits, int64_t rows, int64_t cols, double density) {
  const Csr<T> csr = random_weight<T>(random, value_bits, rows, cols, density);
  std::vector<uint16_t> scales(static_cast<size_t>(rows * ((cols + 63) / 64)));
  for (uint16_t& scale : scales) scale = static_cast<uint16_t>(random.next());
  const PackedFragment<T> packed(csr, value_bits, scales);
  expect_unpacked(csr, packed);
  expect_decoded(csr, packed);
  if (value_bits != 4) return;
  std::vector<uint16_t> unpacked(scales.size());
  unpack_group_scales(packed.view(), {0, packed.shape.row_tiles()}, unpacked.data());
  ASSERT_EQ(unpacked, scales);
}

// SPARSECORE_FUZZ_TILES=1000000 takes minutes.
int64_t fuzz_tiles() {
  const char* tiles = std::getenv("SPARSECORE_FUZZ_TILES");
  return tiles == nullptr ? 2000 : std::stoll(tiles);
}

TEST(Fragment, PackedTilesAreExact) {
  Random random(1);
  for (int64_t tiles = 0, seed = 0; tiles < fuzz_tiles(); ++seed) {
    SCOPED_TRACE(seed);
    random = Random(static_cast<uint64_t>(seed));
    const int64_t rows = random.pick<int64_t>({1, 8, 15, 63, 64, 65, 130}), cols = random.integer(1, 700);
    const double density = random.chance(0.2) ? double(random.integer(0, 1)) : 0.5 * (random.number() + 1.0);
    const int value_bits = random.pick(kAllBits);
    if (value_bits == 16) {
      expect_exact<uint16_t>(random, 16, rows, cols, density);
    } else {
      expect_exact<int8_t>(random, value_bits, rows, cols, density);
    }
    if (HasFatalFailure()) return;
    tiles += (rows + 63) / 64 * ((cols + 63) / 64);
  }
}

TEST(Fragment, EmptyWeights) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 0}, {0, 5}, {5, 0}}) {
    const Csr<uint16_t> csr{rows, cols, std::vector<int32_t>(size_t(rows) + 1), {}, {}};
    expect_unpacked(csr, PackedFragment<uint16_t>(csr, 16));
  }
}

// Any change of the bytes that would read or leave out something is refused; what is accepted decodes inside its tiles.
TEST(Fragment, TamperedBytesAreRefusedOrHarmless) {
  int refused = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const int value_bits = random.pick(kAllBits);
    const int64_t rows = random.pick<int64_t>({1, 60, 64, 70}), cols = random.pick<int64_t>({3, 64, 100, 190});
    const auto csr = random_weight<int8_t>(random, value_bits == 4 ? 4 : 8, rows, cols, 0.4);
    PackedFragment<int8_t> packed(csr, value_bits == 4 ? 4 : 8, std::vector<uint16_t>(size_t(rows * 3)));
    const bool is_pointer = random.chance(0.3);
    if (is_pointer) {
      packed.tile_ptr[random.integer(0, packed.shape.num_tiles())] += int32_t(random.pick<int64_t>({-1, 1, 1 << 30}));
    } else {
      const int64_t byte = random.integer(0, packed.blob.size() - 1);
      packed.blob[byte] = static_cast<uint8_t>(packed.blob[byte] ^ 1 << random.integer(0, 7));
    }
    if (validate_fragment(packed.view(), {0, packed.shape.row_tiles()}) != nullptr) {
      ++refused;
      continue;
    }
    ASSERT_TRUE(!is_pointer || packed.tile_ptr[0] != 0);  // the caller knows where the first tile begins
    // A value, a scale, or a bit whose value is in the padding: nothing lies outside.
    std::vector<int32_t> row_ptr(size_t(rows) + 1);
    count_unpacked(packed.view(), {0, packed.shape.row_tiles()}, row_ptr.data());
    const auto nnz = static_cast<size_t>(running_sum(row_ptr.data(), rows));
    std::vector<int32_t> col_idx(nnz);
    std::vector<int8_t> values(nnz);
    unpack_fragment<int8_t>(packed.view(), {0, packed.shape.row_tiles()}, row_ptr.data(), col_idx.data(),
                            values.data());
    EXPECT_EQ(validate_csr(cols, int64_t(nnz), row_ptr.data(), col_idx.data(), {0, rows}), nullptr);
    decode_all(packed);
  }
  EXPECT_GT(refused, 150);
}

TEST(Fragment, BlocksHaveEqualBytes) {
  Random random(5);
  const auto csr = random_weight<uint16_t>(random, 16, 300, 700, 0.3);
  const PackedFragment<uint16_t> packed(csr, 16);
  for (const int64_t num_blocks : {1, 2, 7, 54, 55, 56, 200}) {
    std::vector<int32_t> block_ptr(size_t(num_blocks) + 1);
    std::vector<int32_t> row_block(size_t(packed.shape.row_tiles()));
    split_fragment(packed.view(), num_blocks, block_ptr.data(), row_block.data());
    for (int64_t row_tile = 0; row_tile < packed.shape.row_tiles(); ++row_tile) {
      const int64_t first = row_tile * packed.shape.col_tiles();
      EXPECT_GT(block_ptr[size_t(row_block[size_t(row_tile)]) + 1], first);
      EXPECT_LE(block_ptr[size_t(row_block[size_t(row_tile)])], first);
    }
    EXPECT_EQ(block_ptr.front(), 0);
    EXPECT_EQ(block_ptr.back(), packed.shape.num_tiles());
    const double share = double(packed.blob.size()) / double(num_blocks);
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int32_t begin = block_ptr[size_t(block)], end = block_ptr[size_t(block) + 1];
      ASSERT_LE(begin, end);
      const int64_t bytes = int64_t(packed.tile_ptr[end] - packed.tile_ptr[begin]) * kFragmentUnit;
      EXPECT_LE(std::abs(double(bytes) - share), kFragmentMaxTileBytes);
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
