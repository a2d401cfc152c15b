#include "pack/fragment.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "pack/split_evenly.h"

namespace sparsecore {
namespace {

constexpr int kTile = kFragmentTile;

Range rows_of(const FragmentShape& shape, int64_t row_tile) {
  return {row_tile * kTile, std::min((row_tile + 1) * kTile, shape.rows)};
}

// The half that holds row r and column k of a tile; row r % 8 of it, 16 columns from k / 16 * 16 on.
int half_of(int64_t r, int64_t k) { return fragment_half(int(r / 16), int(k / 16), int(r / 8 % 2)); }

uint32_t load_word(const uint8_t* tile, int number) {
  uint32_t word;
  std::memcpy(&word, tile + 4 * number, sizeof(word));
  return word;
}
// The 16 bits of row g of a half.
uint32_t row_bits(const uint8_t* tile, int half, int g) {
  return load_word(tile, fragment_word(half, g / 2)) >> g % 2 * 16 & 0xffff;
}
void set_bit(uint8_t* tile, int half, int g, int col) {
  const int bit = g % 2 * 16 + col;
  tile[4 * fragment_word(half, g / 2) + bit / 8] |= static_cast<uint8_t>(1u << bit % 8);
}

template <class T>
void put_value(uint8_t* values, int value_bits, int64_t at, T value) {
  if (value_bits == 4) {
    values[at / 2] |= static_cast<uint8_t>((int(value) + 8) << at % 2 * 4);
  } else {
    std::memcpy(values + at * int64_t(sizeof(T)), &value, sizeof(T));
  }
}
template <class T>
T get_value(const uint8_t* values, int value_bits, int64_t at) {
  if (value_bits == 4) return static_cast<T>((values[at / 2] >> at % 2 * 4 & 15) - 8);
  T value;
  std::memcpy(&value, values + at * int64_t(sizeof(T)), sizeof(T));
  return value;
}

// function(half, row of the half, its 16 bits) in the order of values.
template <class Function>
void for_each_row(const uint8_t* tile, Function function) {
  for (int half = 0; half < kFragmentHalves; ++half) {
    for (int g = 0; g < 8; ++g) function(half, g, row_bits(tile, half, g));
  }
}

int count_values(const uint8_t* tile) {
  int count = 0;
  for (int i = 0; i < kFragmentMaskBytes / 4; ++i) count += std::popcount(load_word(tile, i));
  return count;
}

const uint8_t* tile_of(const FragmentView& weight, int64_t tile) {
  return weight.blob + int64_t(weight.tile_ptr[tile]) * kFragmentUnit;
}

const char* validate_tile(const FragmentView& weight, int64_t row_tile, int64_t col_tile) {
  const int64_t number = row_tile * weight.col_tiles() + col_tile;
  const int64_t begin = weight.tile_ptr[number], end = weight.tile_ptr[number + 1];
  if (begin < 0 || begin > end || end > weight.blob_bytes / kFragmentUnit) return "tile_ptr must rise inside the blob";
  const int64_t bytes = (end - begin) * kFragmentUnit;
  if (bytes < kFragmentMaskBytes) return "a tile must hold its masks";
  const uint8_t* tile = tile_of(weight, number);
  const int count = count_values(tile);
  if (bytes != fragment_tile_bytes(weight.value_bits, count)) return "a tile must be as long as its masks say";
  const int64_t rows = rows_of(weight, row_tile).size(),
                cols = std::min<int64_t>(weight.cols - col_tile * kTile, kTile);
  bool is_inside = true;
  for_each_row(tile, [&](int half, int g, uint32_t bits) {
    const int64_t inside = std::clamp<int64_t>(cols - fragment_col(half), 0, 16);
    if (fragment_row(half) + g >= rows ? bits != 0 : bits >> inside != 0) is_inside = false;
  });
  if (!is_inside) return "masks must have no bits past N or K";
  const int64_t bits = int64_t(count) * weight.value_bits;
  const int64_t values_end = fragment_values_at(weight.value_bits) + bits / 8;
  if (bits % 8 != 0 && tile[values_end] >> 4 != 0) return "a tile must end in zeros";
  if (!std::all_of(tile + values_end + (bits % 8 != 0), tile + bytes, [](uint8_t byte) { return byte == 0; })) {
    return "a tile must end in zeros";
  }
  return nullptr;
}

}  // namespace

template <class T>
void count_fragment(const CsrView<T>& weight, const FragmentShape& shape, Range row_tiles, int32_t* tile_ptr) {
  const int64_t col_tiles = shape.col_tiles();
  std::vector<int> counts(static_cast<size_t>(col_tiles));
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    std::fill(counts.begin(), counts.end(), 0);
    const Range rows = rows_of(shape, row_tile);
    for (int64_t i = weight.row_ptr[rows.begin]; i < weight.row_ptr[rows.end]; ++i) {
      ++counts[static_cast<size_t>(weight.col_idx[i] / kTile)];
    }
    int32_t* units = tile_ptr + row_tile * col_tiles + 1;
    for (const int count : counts) *units++ = fragment_tile_bytes(shape.value_bits, count) / kFragmentUnit;
  }
}

template <class T>
void fill_fragment(const CsrView<T>& weight, const FragmentShape& shape, const uint16_t* group_scales, Range row_tiles,
                   const int32_t* tile_ptr, uint8_t* blob) {
  const int64_t col_tiles = shape.col_tiles();
  constexpr size_t kRowsOfHalves = kFragmentHalves * 8;
  // Where the next value of a row of a half goes, for all tiles of the row.
  std::vector<uint16_t> next(static_cast<size_t>(col_tiles) * kRowsOfHalves);
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    const int32_t* units = tile_ptr + row_tile * col_tiles;
    const auto tile_at = [&](int64_t col_tile) { return blob + int64_t(units[col_tile]) * kFragmentUnit; };
    std::fill(tile_at(0), tile_at(col_tiles), uint8_t{0});  // nothing for a null pointer, which memset() must not get
    const Range rows = rows_of(shape, row_tile);
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      const int64_t r = n - rows.begin;
      for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
        const int64_t k = weight.col_idx[i];
        set_bit(tile_at(k / kTile), half_of(r, k % kTile), int(r % 8), int(k % 16));
      }
    }
    for (int64_t col_tile = 0; col_tile < col_tiles; ++col_tile) {
      uint16_t* places = next.data() + static_cast<size_t>(col_tile) * kRowsOfHalves;
      int before = 0;
      for_each_row(tile_at(col_tile), [&](int half, int g, uint32_t bits) {
        places[half * 8 + g] = static_cast<uint16_t>(before);
        before += std::popcount(bits);
      });
      if (shape.value_bits != 4) continue;
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        std::memcpy(tile_at(col_tile) + kFragmentMaskBytes + 2 * (n - rows.begin),
                    group_scales + n * col_tiles + col_tile, 2);
      }
    }
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      const int64_t r = n - rows.begin;
      for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
        const int64_t k = weight.col_idx[i], col_tile = k / kTile;
        uint16_t& place = next[static_cast<size_t>(col_tile) * kRowsOfHalves +
                               static_cast<size_t>(half_of(r, k % kTile) * 8 + r % 8)];
        put_value(tile_at(col_tile) + fragment_values_at(shape.value_bits), shape.value_bits, place++,
                  weight.values[i]);
      }
    }
  }
}

const char* validate_fragment(const FragmentView& weight, Range row_tiles) {
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    for (int64_t col_tile = 0; col_tile < weight.col_tiles(); ++col_tile) {
      if (const char* problem = validate_tile(weight, row_tile, col_tile)) return problem;
    }
  }
  return nullptr;
}

void count_unpacked(const FragmentView& weight, Range row_tiles, int32_t* row_ptr) {
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    const Range rows = rows_of(weight, row_tile);
    int32_t counts[kTile] = {};
    for (int64_t col_tile = 0; col_tile < weight.col_tiles(); ++col_tile) {
      for_each_row(tile_of(weight, row_tile * weight.col_tiles() + col_tile),
                   [&](int half, int g, uint32_t bits) { counts[fragment_row(half) + g] += std::popcount(bits); });
    }
    std::copy_n(counts, rows.size(), row_ptr + rows.begin + 1);
  }
}

template <class T>
void unpack_fragment(const FragmentView& weight, Range row_tiles, const int32_t* row_ptr, int32_t* col_idx, T* values) {
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    const Range rows = rows_of(weight, row_tile);
    int64_t next[kTile] = {};
    std::copy_n(row_ptr + rows.begin, rows.size(), next);
    // Halves of a row come in the order of its columns, so entries stay ascending.
    for (int64_t col_tile = 0; col_tile < weight.col_tiles(); ++col_tile) {
      const uint8_t* tile = tile_of(weight, row_tile * weight.col_tiles() + col_tile);
      int64_t at = 0;
      for_each_row(tile, [&](int half, int g, uint32_t bits) {
        for (; bits != 0; bits &= bits - 1) {
          const int64_t to = next[fragment_row(half) + g]++;
          col_idx[to] = static_cast<int32_t>(col_tile * kTile + fragment_col(half) + std::countr_zero(bits));
          values[to] = get_value<T>(tile + fragment_values_at(weight.value_bits), weight.value_bits, at++);
        }
      });
    }
  }
}

void unpack_group_scales(const FragmentView& weight, Range row_tiles, uint16_t* group_scales) {
  for (int64_t row_tile = row_tiles.begin; row_tile < row_tiles.end; ++row_tile) {
    const Range rows = rows_of(weight, row_tile);
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      for (int64_t col_tile = 0; col_tile < weight.col_tiles(); ++col_tile) {
        const uint8_t* tile = tile_of(weight, row_tile * weight.col_tiles() + col_tile);
        std::memcpy(group_scales + n * weight.col_tiles() + col_tile, tile + kFragmentMaskBytes + 2 * (n - rows.begin),
                    2);
      }
    }
  }
}

void split_fragment(const FragmentView& weight, int64_t num_blocks, int32_t* block_ptr, int32_t* row_block) {
  split_evenly(weight.tile_ptr, weight.num_tiles(), 0, num_blocks, block_ptr);
  int64_t block = 0;
  for (int64_t row_tile = 0; row_tile < weight.row_tiles(); ++row_tile) {
    while (block < num_blocks && block_ptr[block + 1] <= row_tile * weight.col_tiles()) ++block;
    row_block[row_tile] = static_cast<int32_t>(block);
  }
}

#define SPARSECORE_INSTANTIATE(T)                                                                                 \
  template void count_fragment<T>(const CsrView<T>&, const FragmentShape&, Range, int32_t*);                      \
  template void fill_fragment<T>(const CsrView<T>&, const FragmentShape&, const uint16_t*, Range, const int32_t*, \
                                 uint8_t*);                                                                       \
  template void unpack_fragment<T>(const FragmentView&, Range, const int32_t*, int32_t*, T*);
SPARSECORE_INSTANTIATE(uint16_t)
SPARSECORE_INSTANTIATE(int8_t)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
