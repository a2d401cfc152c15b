// Walks the bytes of a fragment tile as a warp of the CUDA kernels does, on the CPU: the same words in the same lanes,
// the same sums of bits, the same reads of values. What it returns is what the kernels multiply with.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "pack/fragment_layout.h"

namespace sparsecore {

// values[64][64]: the bits of the stored values (4-bit ones as stored), zero elsewhere; present: which are stored.
// Reads no further than kFragmentMaxTileBytes whatever the bytes are, and no further than the tile if it is valid.
inline void decode_fragment_tile(const uint8_t* tile, int value_bits, uint16_t (&values)[kFragmentTile][kFragmentTile],
                                 bool (&present)[kFragmentTile][kFragmentTile]) {
  std::memset(values, 0, sizeof(values));
  std::memset(present, 0, sizeof(present));
  uint32_t words[32][4];  // of each lane
  std::memcpy(words, tile, sizeof(words));
  const uint8_t* stored = tile + fragment_values_at(value_bits);
  int half_begin = 0;  // values before this half
  for (int half = 0; half < kFragmentHalves; ++half) {
    int word_begin[5] = {half_begin};
    for (int j = 0; j < 4; ++j) word_begin[j + 1] = word_begin[j] + std::popcount(words[half / 4 * 4 + j][half % 4]);
    for (int lane = 0; lane < 32; ++lane) {
      const int j = lane / 8;
      const uint32_t word = words[half / 4 * 4 + j][half % 4];
      int at = word_begin[j] + std::popcount(word & fragment_bits_before(lane));
      for (int e = 0; e < 4; ++e) {
        if ((word >> (fragment_quad_shift(lane) + e) & 1) == 0) continue;
        const int row = fragment_row(half) + lane / 4, col = fragment_col(half) + lane % 4 * 4 + e;
        uint16_t value = 0;
        if (value_bits == 16) {
          std::memcpy(&value, stored + 2 * at, 2);
        } else if (value_bits == 8) {
          value = stored[at];
        } else {
          value = stored[at / 2] >> at % 2 * 4 & 15;
        }
        values[row][col] = value;
        present[row][col] = true;
        ++at;
      }
    }
    half_begin = word_begin[4];
  }
}

}  // namespace sparsecore
