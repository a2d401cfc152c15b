// As spmm_fragment.h for more rows of x, in one reading of W: a block expands a tile of W once, in shared memory, and
// each of its warps multiplies all of it by rows of x of its own. The sums of a row of tiles go to slots of `partial`,
// which spmm_fragment_finish() adds.
#pragma once

#include "cuda/spmm_fragment.h"

namespace sparsecore::cuda {

inline constexpr int kWideWarps = kFragmentThreads / kWarp;
inline constexpr int kFragmentsOfTile = 16;
inline constexpr int kFragmentBytes =
    kWarp * int(sizeof(uint4));  // expanded to 16 bits, registers of each lane together

// Rows of x for one reading of W.
template <int kTokenTiles>
constexpr int kWideTokens = kWideWarps * kTokenTiles * kTokenTile;

// Shared memory of a block: barriers, the expanded tile and its scales, the ring, and room behind it for what a
// tampered last tile may read.
struct WideShared {
  int stage_bytes;

  SPARSECORE_HOST_DEVICE int expanded_at() const { return 128; }
  SPARSECORE_HOST_DEVICE int scales_at() const { return expanded_at() + kFragmentsOfTile * kFragmentBytes; }
  SPARSECORE_HOST_DEVICE int ring_at() const { return scales_at() + kFragmentTile * int(sizeof(uint16_t)); }
  SPARSECORE_HOST_DEVICE int bytes() const { return ring_at() + (kStages - 1) * stage_bytes + kFragmentReadBytes; }
};

// The warp's two fragments of a tile, to shared memory as multiply_add() takes them; the first warp copies the scales.
template <class Values>
SPARSECORE_DEVICE void expand_tile(uint32_t tile, uint32_t selectors, uint4* expanded, uint32_t* scales) {
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  const WarpTile opened = open_tile<Values::kBits>(tile);
  SPARSECORE_UNROLL
  for (int j = 0; j < 2; ++j) {
    const int i = warp / 2, c = warp % 2 * 2 + j;
    uint32_t a[4];
    read_fragment<Values>(opened, i, c, selectors, a);
    expanded[(4 * i + c) * kWarp + lane] = {a[0], a[1], a[2], a[3]};
  }
  if (Values::kBits == 4 && warp == 0) scales[lane] = read_shared_32(tile + kFragmentMaskBytes + 4 * lane);
}

// block_x: range of tiles. Of x the first kWideTokens rows, or all.
template <class Values, int kTokenTiles, bool kBulk>
SPARSECORE_KERNEL(kFragmentThreads, kTokenTiles <= 2 ? 2 : 1)
spmm_fragment_wide(FragmentArrays weight, const void* x_any, bool is_aligned, int M, void* partial) {
  if (!kIsChosen<kBulk>) return;
  using Sum = typename Values::Sum;
  const auto* x = static_cast<const typename Values::X*>(x_any);
  constexpr int kTokens = kWideTokens<kTokenTiles>;
  const int row_tiles = tiles_of(weight.rows), col_tiles = tiles_of(weight.cols), K = static_cast<int>(weight.cols);
  const int begin = clamp_to(load(weight.block_ptr + block_x()), row_tiles * col_tiles);
  const int end = clamp_to(load(weight.block_ptr + block_x() + 1), row_tiles * col_tiles);
  if (begin >= end) return;
  const int lane = thread_index() % kWarp;
  const int own_tokens = thread_index() / kWarp * kTokenTiles * kTokenTile;
  const WideShared layout{weight.stage_bytes};
  uint8_t* shared = shared_memory();
  auto* expanded = reinterpret_cast<uint4*>(shared + layout.expanded_at());
  auto* scales = reinterpret_cast<uint32_t*>(shared + layout.scales_at());
  const uint32_t fragments = shared_address(expanded) + static_cast<uint32_t>(lane * int(sizeof(uint4)));
  const uint32_t selectors = Values::selector(static_cast<uint32_t>(lane) % 16);

  TileRing<kBulk, true> ring(weight, shared + layout.ring_at(), reinterpret_cast<uint64_t*>(shared), begin, end, 1);
  for (int tile = begin, row_tile = begin / col_tiles; tile < end; ++row_tile) {
    Sum acc[4][kTokenTiles][4] = {};
    const int row_end = clamp_to((row_tile + 1) * col_tiles, end);
    for (; tile < row_end; ++tile) {
      TileActivations<Values, kTokenTiles> activations;
      activations.read(x, is_aligned, own_tokens, M, tile % col_tiles * kFragmentTile, K);
      // wait() and release() also wait for all warps: before that the last tile is multiplied, after it this one is
      // expanded.
      expand_tile<Values>(ring.wait(), selectors, expanded, scales);
      ring.release();
      multiply_tile<Values>(
          [&](int i, int c, uint32_t (&a)[4]) {
            const uint4 registers = read_shared_128(fragments + static_cast<uint32_t>((4 * i + c) * kFragmentBytes));
            a[0] = registers.x;
            a[1] = registers.y;
            a[2] = registers.z;
            a[3] = registers.w;
          },
          shared_address(scales), activations, acc);
    }
    Sum* slot = static_cast<Sum*>(partial) + (block_x() + row_tile) * kFragmentTile * kTokens;
    SPARSECORE_UNROLL
    for (int i = 0; i < 4; ++i) {
      SPARSECORE_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        SPARSECORE_UNROLL
        for (int q = 0; q < 4; ++q) {
          const int row = 16 * i + lane / 4 + q / 2 * 8, token = own_tokens + n * kTokenTile + lane % 4 * 2 + q % 2;
          slot[row * kTokens + token] = acc[i][n][q];
        }
      }
    }
  }
  ring.finish();
}

}  // namespace sparsecore::cuda
