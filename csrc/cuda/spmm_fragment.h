// y[M, N] = x[M, K] W^T for few rows of x, W in the fragment format, on tensor cores with float32 sums: the algorithm
// text of spmm_fragment.cu.
//
//   decode   a block takes a range of tiles, in order, of about equal bytes. Its warps share the tiles of a row of
//            tiles, widen them in registers and multiply; at the end of the row (or of the range) their sums go, added
//            in the order of warps, to a slot of `partial`
//   finish   adds a row's slots in the order of blocks, scale, bias, activation
//
// Sums do not depend on timing. Unlike the kernels on stored entries alone, a NaN or infinity in x reaches every output
// of its row: tensor cores multiply the zeros too.
#pragma once

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/fragment_tile.h"
#include "cuda/kernels.h"
#include "cuda/tile_ring.h"

namespace sparsecore::cuda {

inline constexpr int kFragmentThreads = 256;
inline constexpr int kTokenTile = 8;  // columns of mma.m16n8k16

// Shared memory of a block: sums of its warps for 16 rows, barriers, the rings, and room behind them for what a
// tampered last tile may read.
struct FragmentShared {
  int warps, token_tiles, stage_bytes;

  SPARSECORE_HOST_DEVICE int sums() const { return warps * 16 * kTokenTile * token_tiles * int(sizeof(float)); }
  SPARSECORE_HOST_DEVICE int barriers_at() const { return sums(); }
  SPARSECORE_HOST_DEVICE int ring_at() const {
    return (barriers_at() + warps * kStages * int(sizeof(uint64_t)) + 127) / 128 * 128;
  }
  SPARSECORE_HOST_DEVICE int bytes() const {
    return ring_at() + warps * kStages * stage_bytes + kFragmentReadBytes - stage_bytes;
  }
};

// Slots of 64 rows x tokens in `partial`. Block and row of tiles only ever grow along the tiles, so that their sum is
// different for all pairs that occur.
SPARSECORE_HOST_DEVICE int64_t fragment_slots(int64_t num_blocks, int64_t row_tiles) { return num_blocks + row_tiles; }

SPARSECORE_DEVICE int clamp_to(int i, int size) { return i < 0 ? 0 : i > size ? size : i; }

// Rows or columns of tiles. Sizes, tiles and rows of x fit in 31 bits (the binding checks), also rounded up to tiles;
// only offsets in memory take 64.
SPARSECORE_HOST_DEVICE int tiles_of(int64_t size) {
  return static_cast<int>((size + kFragmentTile - 1) / kFragmentTile);
}

// The quad of activations that a lane multiplies with: columns col .. col + 3 of a row, zeros outside.
SPARSECORE_DEVICE uint2 load_activations(const uint16_t* x, bool is_aligned, int token, int M, int col, int K) {
  if (token >= M || col >= K) return {0, 0};
  const uint16_t* from = x + int64_t(token) * K + col;
  if (is_aligned) return load_pair(from);
  uint32_t numbers[4] = {};
  SPARSECORE_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (col + e < K) numbers[e] = load(from + e);
  }
  return {numbers[0] | numbers[1] << 16, numbers[2] | numbers[3] << 16};
}

SPARSECORE_DEVICE uint32_t load_activations(const int8_t* x, bool is_aligned, int token, int M, int col, int K) {
  if (token >= M || col >= K) return 0;
  const int8_t* from = x + int64_t(token) * K + col;
  if (is_aligned) return load(reinterpret_cast<const uint32_t*>(from));
  uint32_t result = 0;
  SPARSECORE_UNROLL
  for (int e = 0; e < 4; ++e) {
    if (col + e < K) result |= uint32_t(static_cast<uint8_t>(load(from + e))) << 8 * e;
  }
  return result;
}

// Activations of a tile's 64 columns for all tokens of a block.
template <class Values, int kTokenTiles>
struct TileActivations {
  typename Values::Quad quads[kTokenTiles][4];

  SPARSECORE_DEVICE void read(const typename Values::X* x, bool is_aligned, int first_token, int M, int first_col,
                              int K) {
    const int lane = thread_index() % kWarp;
    SPARSECORE_UNROLL
    for (int n = 0; n < kTokenTiles; ++n) {
      SPARSECORE_UNROLL
      for (int c = 0; c < 4; ++c) {
        quads[n][c] = load_activations(x, is_aligned, first_token + n * kTokenTile + lane / 4, M,
                                       first_col + 16 * c + lane % 4 * 4, K);
      }
    }
  }
};

// acc[i]: rows 16 i .. of the tile, in the registers of multiply_add(). read(i, c, a): fragment (i, c); scales: the
// shared address of the tile's 64 scales, if values have 4 bits.
template <class Values, int kTokenTiles, class ReadFragment>
SPARSECORE_DEVICE void multiply_tile(ReadFragment read, uint32_t scales,
                                     const TileActivations<Values, kTokenTiles>& activations,
                                     float (&acc)[4][kTokenTiles][4]) {  // warp
  SPARSECORE_UNROLL
  for (int i = 0; i < 4; ++i) {
    float sums[kTokenTiles][4] = {};  // of a scale group, which is the tile's row
    SPARSECORE_UNROLL
    for (int c = 0; c < 4; ++c) {
      uint32_t a[4];
      read(i, c, a);
      SPARSECORE_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        const uint2 b = activations.quads[n][c];
        Values::Number::multiply_add(Values::kBits == 4 ? sums[n] : acc[i][n], a, b.x, b.y);
      }
      // Or the compiler fills all registers with values of later fragments, and spills.
      if (kTokenTiles > 1 || c == 3) sync_warp();
    }
    if constexpr (Values::kBits == 4) {
      const uint32_t from = scales + 2 * (16 * i + thread_index() % kWarp / 4);
      const float scale[2] = {half_to_float(read_shared_16(from)), half_to_float(read_shared_16(from + 16))};
      SPARSECORE_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        SPARSECORE_UNROLL
        for (int q = 0; q < 4; ++q) acc[i][n][q] = fmaf(scale[q / 2], sums[n][q], acc[i][n][q]);
      }
    }
  }
}

// The same in int8: a product takes two fragments.
template <class Values, int kTokenTiles, class ReadFragment>
SPARSECORE_DEVICE void multiply_tile(ReadFragment read, uint32_t,
                                     const TileActivations<Values, kTokenTiles>& activations,
                                     int32_t (&acc)[4][kTokenTiles][4]) {  // warp
  SPARSECORE_UNROLL
  for (int i = 0; i < 4; ++i) {
    SPARSECORE_UNROLL
    for (int c = 0; c < 4; c += 2) {
      uint32_t left[4], right[4];
      read(i, c, left);
      read(i, c + 1, right);
      const uint32_t a[4] = {left[0], left[1], right[0], right[1]};
      SPARSECORE_UNROLL
      for (int n = 0; n < kTokenTiles; ++n) {
        multiply_add_int8(acc[i][n], a, activations.quads[n][c], activations.quads[n][c + 1]);
      }
      if (kTokenTiles > 1 || c == 2) sync_warp();  // as above
    }
  }
}

// Adds the warps' sums in their order and writes them to out[64][8 * kTokenTiles]. shared: FragmentShared::sums().
template <class Sum, int kTokenTiles>
SPARSECORE_DEVICE void write_sums(const Sum (&acc)[4][kTokenTiles][4], Sum* shared, Sum* out) {
  constexpr int kTokens = kTokenTile * kTokenTiles, kSums = 16 * kTokens;
  const int lane = thread_index() % kWarp, warps = block_threads() / kWarp;
  Sum* mine = shared + thread_index() / kWarp * kSums;
  SPARSECORE_UNROLL
  for (int i = 0; i < 4; ++i) {
    SPARSECORE_UNROLL
    for (int n = 0; n < kTokenTiles; ++n) {
      SPARSECORE_UNROLL
      for (int q = 0; q < 4; ++q) {
        mine[(lane / 4 + q / 2 * 8) * kTokens + n * kTokenTile + lane % 4 * 2 + q % 2] = acc[i][n][q];
      }
    }
    sync_block();
    for (int e = thread_index(); e < kSums; e += block_threads()) {
      Sum sum = shared[e];
      for (int warp = 1; warp < warps; ++warp) sum += shared[warp * kSums + e];
      out[i * kSums + e] = sum;
    }
    sync_block();
  }
}

// Blocks of decode per multiprocessor that leave a thread the registers it needs: 128 for two blocks, 255 for one.
template <class Values, int kTokenTiles>
constexpr int kDecodeBlocks = kTokenTiles == 1 || (kTokenTiles == 2 && Values::kBits > 4) ? 2 : 1;

// block_x: range of tiles. Of x the first 8 * kTokenTiles rows, or all.
template <class Values, int kTokenTiles, bool kBulk>
SPARSECORE_KERNEL(kFragmentThreads, (kDecodeBlocks<Values, kTokenTiles>))
spmm_fragment_decode(FragmentArrays weight, const void* x_any, bool is_aligned, int M, void* partial) {
  if (!kIsChosen<kBulk>) return;
  using Sum = typename Values::Sum;
  const auto* x = static_cast<const typename Values::X*>(x_any);
  const int row_tiles = tiles_of(weight.rows), col_tiles = tiles_of(weight.cols), K = static_cast<int>(weight.cols);
  const int begin = clamp_to(load(weight.block_ptr + block_x()), row_tiles * col_tiles);
  const int end = clamp_to(load(weight.block_ptr + block_x() + 1), row_tiles * col_tiles);
  if (begin >= end) return;
  const int lane = thread_index() % kWarp, warps = block_threads() / kWarp;
  const FragmentShared layout{warps, kTokenTiles, weight.stage_bytes};
  uint8_t* shared = shared_memory();
  const uint32_t selectors = Values::selector(static_cast<uint32_t>(lane) % 16);

  int tile = begin + thread_index() / kWarp;
  TileRing<kBulk> ring(weight, shared + layout.ring_at(), reinterpret_cast<uint64_t*>(shared + layout.barriers_at()),
                       tile, end, warps);
  TileActivations<Values, kTokenTiles> activations;
  // Ahead of the tile, so that nothing waits for them, where there are registers for two tiles' activations.
  constexpr bool kIsAhead = kTokenTiles == 1;
  const auto read_activations = [&] {
    if (tile < end) activations.read(x, is_aligned, 0, M, tile % col_tiles * kFragmentTile, K);
  };
  if (kIsAhead) read_activations();
  for (int row_tile = begin / col_tiles; row_tile * col_tiles < end; ++row_tile) {
    Sum acc[4][kTokenTiles][4] = {};
    const int row_end = clamp_to((row_tile + 1) * col_tiles, end);
    while (tile < row_end) {
      if (!kIsAhead) read_activations();
      const TileActivations<Values, kTokenTiles> current = activations;
      tile += warps;
      if (kIsAhead) read_activations();
      const uint32_t shared_tile = ring.wait();
      const WarpTile opened = open_tile<Values::kBits>(shared_tile);
      multiply_tile<Values>([&](int i, int c, uint32_t (&a)[4]) { read_fragment<Values>(opened, i, c, selectors, a); },
                            shared_tile + kFragmentMaskBytes, current, acc);
      ring.release();
    }
    const int64_t slot = block_x() + row_tile;
    write_sums(acc, reinterpret_cast<Sum*>(shared),
               static_cast<Sum*>(partial) + slot * kFragmentTile * kTokenTile * kTokenTiles);
  }
  ring.finish();
}

// How sums become numbers of y: of float activations, and of int8 ones.
struct FloatFinish {
  using Sum = float;
  int M;
  SpmmOutput out;

  template <class X>
  SPARSECORE_DEVICE void store_sum(const FragmentArrays& weight, int token, int64_t row, float sum) const {
    store<X>(out, weight.scale, row, token * weight.rows + row, sum);
  }
};
struct Int8Finish {
  using Sum = int32_t;
  int M;
  Int8Activations x;
  Int8Output out;

  template <class X>
  SPARSECORE_DEVICE void store_sum(const FragmentArrays& weight, int token, int64_t row, int32_t sum) const {
    store_int8<X>(out, x, load(weight.scale + row), token, row, token * weight.rows + row, sum);
  }
};

// block_x: row of tiles. Of y the first 8 * kTokenTiles rows, or all.
template <class X, class Finish, int kTokenTiles>
SPARSECORE_KERNEL(kFragmentThreads, 4)
spmm_fragment_finish(FragmentArrays weight, const void* partial, Finish finish) {
  using Sum = typename Finish::Sum;
  constexpr int kTokens = kTokenTile * kTokenTiles;
  const int col_tiles = tiles_of(weight.cols);
  const int64_t begin = block_x() * col_tiles, end = begin + col_tiles;
  const Sum* slots = static_cast<const Sum*>(partial) + block_x() * kFragmentTile * kTokens;
  for (int e = thread_index(); e < kFragmentTile * kTokens; e += block_threads()) {
    const int64_t row = block_x() * kFragmentTile + e % kFragmentTile;
    const int token = e / kFragmentTile;
    if (row >= weight.rows || token >= finish.M) continue;
    Sum sum = 0;
    for (int64_t block = clamp_to(load(weight.row_block + block_x()), static_cast<int>(weight.num_blocks));
         block < weight.num_blocks && load(weight.block_ptr + block) < end; ++block) {
      // Blocks without tiles wrote nothing.
      const int32_t from = load(weight.block_ptr + block), to = load(weight.block_ptr + block + 1);
      if (to > begin && to > from) sum += slots[(block * kFragmentTile + e % kFragmentTile) * kTokens + token];
    }
    finish.template store_sum<X>(weight, token, row, sum);
  }
}

// dense[N, K] with zeros where nothing is stored, rounded to Values::Number, for matrix products with many rows of x.
// One warp per block: block_x walks over tiles.
template <class Values>
SPARSECORE_KERNEL(kWarp, 16)
fragment_expand(FragmentArrays weight, uint16_t* dense) {
  using Number = typename Values::Number;
  const int col_tiles = tiles_of(weight.cols), num_tiles = tiles_of(weight.rows) * col_tiles;
  const int lane = thread_index() % kWarp;
  const uint32_t selectors = Values::selector(static_cast<uint32_t>(lane) % 16);
  TileRing<false> ring(weight, shared_memory(), nullptr, block_x(), num_tiles, static_cast<int>(grid_x()));
  for (int64_t tile = block_x(); tile < num_tiles; tile += grid_x()) {
    const uint32_t bytes = ring.wait();
    const WarpTile opened = open_tile<Values::kBits>(bytes);
    SPARSECORE_UNROLL
    for (int c = 0; c < 4; ++c) {  // four fragments at a time, or the code is long
      for (int i = 0; i < 4; ++i) {
        uint32_t a[4];
        read_fragment<Values>(opened, i, c, selectors, a);
        SPARSECORE_UNROLL
        for (int e = 0; e < 8; ++e) {
          // e % 4: place in the quad; e / 4: rows g and g + 8.
          const int tile_row = 16 * i + lane / 4 + e / 4 * 8;
          const int64_t row = tile / col_tiles * kFragmentTile + tile_row;
          const int64_t col = tile % col_tiles * kFragmentTile + 16 * c + lane % 4 * 4 + e % 4;
          if (row >= weight.rows || col >= weight.cols) continue;
          float scale = weight.scale == nullptr ? 1.0f : load(weight.scale + row);
          if constexpr (Values::kBits == 4) {
            scale = half_to_float(read_shared_16(bytes + kFragmentMaskBytes + 2 * tile_row));
          }
          const auto number = static_cast<uint16_t>(a[e / 4 + e % 4 / 2 * 2] >> e % 2 * 16);
          dense[row * weight.cols + col] = Values::kBits == 16 ? number : Number::narrow(scale * Number::widen(number));
        }
      }
    }
    ring.release();
  }
  ring.finish();
}

}  // namespace sparsecore::cuda
