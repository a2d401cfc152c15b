// CSR to the fragment format and back, for the CUDA kernels, and the only check of untrusted bytes of it.
#pragma once

#include <cstdint>

#include "pack/fragment_layout.h"
#include "sparsecore/views.h"

namespace sparsecore {

// weight[N, K] in tiles of 64 x 64 (fragment_layout.h): those of a row of tiles behind each other. Positions past N and
// K have no bits.
struct FragmentShape {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int value_bits = 16;

  int64_t row_tiles() const { return (rows + kFragmentTile - 1) / kFragmentTile; }
  int64_t col_tiles() const { return (cols + kFragmentTile - 1) / kFragmentTile; }
  int64_t num_tiles() const { return row_tiles() * col_tiles(); }
};

struct FragmentView : FragmentShape {
  const int32_t* tile_ptr = nullptr;  // [num_tiles + 1] first unit of 16 bytes of each tile
  const uint8_t* blob = nullptr;      // [16 * tile_ptr[num_tiles]]
  int64_t blob_bytes = 0;
};

// Packing in two passes over ranges of rows of tiles, which are independent of each other: the tiles' units to
// tile_ptr[tile + 1]; then, after running_sum(), the tiles. T: uint16_t (16 bits), int8_t (8, or 4 with values in
// -8 .. 7 and group_scales[rows, col_tiles], the bits of float16). weight must be valid.
template <class T>
void count_fragment(const CsrView<T>& weight, const FragmentShape& shape, Range row_tiles, int32_t* tile_ptr);
template <class T>
void fill_fragment(const CsrView<T>& weight, const FragmentShape& shape, const uint16_t* group_scales, Range row_tiles,
                   const int32_t* tile_ptr, uint8_t* blob);

// What is wrong with rows of tiles, or null if they are exactly what fill_fragment() could have written: offsets rise
// inside the blob, a tile is as long as its bits say, no bits past N or K, zeros at the end.
const char* validate_fragment(const FragmentView& weight, Range row_tiles);

// The exact inverse, in two passes with running_sum() of row_ptr between them. weight must be valid.
void count_unpacked(const FragmentView& weight, Range row_tiles, int32_t* row_ptr);
template <class T>
void unpack_fragment(const FragmentView& weight, Range row_tiles, const int32_t* row_ptr, int32_t* col_idx, T* values);
void unpack_group_scales(const FragmentView& weight, Range row_tiles, uint16_t* group_scales);

// block_ptr[num_blocks + 1]: tiles in order, cut into num_blocks ranges of nearly equal bytes; row_block[row_tiles]:
// the first of them with tiles of each row.
void split_fragment(const FragmentView& weight, int64_t num_blocks, int32_t* block_ptr, int32_t* row_block);

}  // namespace sparsecore
