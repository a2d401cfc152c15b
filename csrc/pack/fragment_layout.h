// Where the fragment format keeps what: the arithmetic that packing, the host decoder and the CUDA kernels share.
//
// A tile is 64 x 64 entries of a weight, as 4 x 4 fragments of 16 x 16, the shape that one mma.m16n8k16 multiplies by.
// Fragment (i, c) has rows 16 i .. and columns 16 c ..; its half s has 8 of those rows. Halves are numbered as a warp
// walks: h = 8 i + 2 c + s. In a half, lane 4 g + t of the warp owns row g and columns 4 t .. 4 t + 3, a quad. (The
// instruction wants columns 2t 2t+1 2t+8 2t+9 of that lane; which column is which is free as long as activations follow
// the same order, and four neighbours are one load of both.)
//
//   half of 8 rows x 16 columns          words: two rows of 16 bits, row 2 j in the low half of word j;
//     g\t  0    1    2    3              bit 16 (g % 2) + column
//     0   lane0 1    2    3     word 0   values: of all halves in order, inside by row, then by column
//     1   lane4 5    6    7
//     2   ...                   word 1
//
// A tile in memory, 16-byte aligned and a multiple of 16 bytes long:
//
//   0     masks   128 words of 32 bits. Word j of half h is number 16 (h / 4) + 4 j + h % 4, so that lane 4 a + j loads
//                 its words of halves 4 a .. 4 a + 3 at once
//   512   scales  64 float16, one per row: 4-bit values only
//   ...   values  of the set bits, of 16, 8 or 4 bits (4: value + 8, low half of a byte first), then zeros
#pragma once

#include <cstdint>

#include "pack/device_text.h"

namespace sparsecore {

inline constexpr int kFragmentTile = 64;
inline constexpr int kFragmentHalves = 32;
inline constexpr int kFragmentMaskBytes = kFragmentTile * kFragmentTile / 8;
inline constexpr int kFragmentUnit = 16;  // bytes that offsets of tiles count

SPARSECORE_HOST_DEVICE constexpr int fragment_values_at(int value_bits) {
  return kFragmentMaskBytes + (value_bits == 4 ? 2 * kFragmentTile : 0);
}
SPARSECORE_HOST_DEVICE constexpr int fragment_tile_bytes(int value_bits, int values) {
  const int bytes = fragment_values_at(value_bits) + (values * value_bits + 7) / 8;
  return (bytes + kFragmentUnit - 1) / kFragmentUnit * kFragmentUnit;
}
inline constexpr int kFragmentMaxTileBytes = fragment_tile_bytes(16, kFragmentTile* kFragmentTile);

SPARSECORE_HOST_DEVICE constexpr int fragment_half(int i, int c, int s) { return 8 * i + 2 * c + s; }
SPARSECORE_HOST_DEVICE constexpr int fragment_word(int half, int j) { return half / 4 * 16 + 4 * j + half % 4; }

// Rows and columns of a half inside the tile.
SPARSECORE_HOST_DEVICE constexpr int fragment_row(int half) { return half / 8 * 16 + half % 2 * 8; }
SPARSECORE_HOST_DEVICE constexpr int fragment_col(int half) { return half / 2 % 4 * 16; }

// Of the word that lane / 8 names: where the lane's quad begins, and the bits before it.
SPARSECORE_HOST_DEVICE constexpr int fragment_quad_shift(int lane) { return lane % 8 * 4; }
SPARSECORE_HOST_DEVICE constexpr uint32_t fragment_bits_before(int lane) {
  return (uint32_t(1) << fragment_quad_shift(lane)) - 1;
}

}  // namespace sparsecore
