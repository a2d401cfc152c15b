// spmm, bitmap format, values of 32 or 16 bits, rows layout: algorithm text. For few rows of activations, where the
// time is the bytes of the weight.
//
// Lanes are output rows. For each column of a block of 16 rows, 16 numbers are loaded from where the block's next value
// is, spread to the lanes whose bits are set in the column's mask, and multiplied with that column of every row of x;
// then the next value is as many further as bits were set. A product on a lane without a bit is left out, not computed
// with zero.
//
//   values  a b c d e ...     column 0, mask 0b1011:  c . b a   fma x[m, 0], next value + 3
//                             column 1, mask 0b0010:  . . d .   fma x[m, 1], next value + 1
//
// Every sum runs over its row's entries from left to right, whatever the number of rows of x.
#pragma once

#include "kernels/copy.h"
#include "kernels/spmm/finish_row.h"
#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

constexpr int kBlockRows = static_cast<int>(kBitmapBlockRows);
template <class S>
constexpr int kVectorsOfBlock = kBlockRows / S::kLanes;

// Rows of x that share each expanded vector, at most: their sums for one block fill half of the registers.
template <class S>
constexpr int max_tile_rows() {
  constexpr int rows = S::kRegisters / 2 / kVectorsOfBlock<S>;
  return rows < 1 ? 1 : rows > 8 ? 8 : rows;
}

// Blocks in flight for M rows of x: they hide each other's waits (tile.h's kSums) and share the activations, while
// their sums take less than three quarters of the registers. Each is two more streams from memory: at most 4.
template <class S, int M>
constexpr int blocks_at_once() {
  for (int blocks = 4; blocks > 1; blocks /= 2) {
    const int vectors = blocks * kVectorsOfBlock<S>;
    if (vectors <= kSums && vectors * M < S::kRegisters * 3 / 4) return blocks;
  }
  return 1;
}

// B blocks for M rows of x, whose distance is ldx; T is what the values are stored as.
template <class S, int M, int B, class T>
void run_blocks(const SpmmBitmapArgs& args, int64_t block, int64_t first_row, const float* x, int64_t ldx) {
  constexpr int L = S::kLanes, V = kVectorsOfBlock<S>;
  const BitmapView& weight = args.weight;
  const int64_t K = weight.cols;
  const uint16_t* masks = weight.masks + block * K;
  const T* values[B];
  typename S::F32 acc[B][V][M];
  SPARSECORE_UNROLL
  for (int b = 0; b < B; ++b) {
    values[b] = static_cast<const T*>(weight.values) + weight.block_ptr[block + b];
    SPARSECORE_UNROLL
    for (int v = 0; v < V; ++v) {
      SPARSECORE_UNROLL
      for (int m = 0; m < M; ++m) acc[b][v][m] = S::zero();
    }
  }
  for (int64_t k = 0; k < K; ++k) {
    typename S::F32 activation[M];
    SPARSECORE_UNROLL
    for (int m = 0; m < M; ++m) activation[m] = S::set1(x[m * ldx + k]);
    SPARSECORE_UNROLL
    for (int b = 0; b < B; ++b) {
      const uint32_t mask = masks[b * K + k];
      SPARSECORE_UNROLL
      for (int v = 0; v < V; ++v) {
        const uint32_t bits = mask >> (v * L) & ((1u << L) - 1u);
        const auto lanes = S::lanes_of(bits);
        const auto value = S::expand(S::load(values[b]), lanes);
        SPARSECORE_UNROLL
        for (int m = 0; m < M; ++m) acc[b][v][m] = S::fma_on(lanes, value, activation[m], acc[b][v][m]);
        values[b] += S::count(bits);
      }
    }
  }
  SPARSECORE_UNROLL
  for (int b = 0; b < B; ++b) {
    float sums[M][kBlockRows];
    SPARSECORE_UNROLL
    for (int v = 0; v < V; ++v) {
      SPARSECORE_UNROLL
      for (int m = 0; m < M; ++m) S::store(sums[m] + v * L, acc[b][v][m]);
    }
    const int64_t n = (block + b) * kBlockRows;
    for (int m = 0; m < M; ++m) finish_row<S>(args, first_row + m, {n, smaller(n + kBlockRows, weight.rows)}, sums[m]);
  }
}

template <class S>
struct SpmmBitmapF32 {
  static bool supports(const SpmmBitmapArgs& args) { return args.layout == Layout::kRows; }

  static int64_t tile_rows(const SpmmBitmapArgs& args) { return balanced_vectors(args.columns, max_tile_rows<S>()); }

  static int64_t num_tiles(const SpmmBitmapArgs& args) { return divide_up(args.columns, tile_rows(args)); }

  // The rows of x of one tile, as float32.
  static int64_t scratch_bytes(const SpmmBitmapArgs& args) {
    return args.dtype == Dtype::kFloat32 ? 0 : tile_rows(args) * args.weight.cols * int64_t(sizeof(float));
  }

  static void run(const SpmmBitmapArgs& args, Range blocks, Range tiles, void* scratch) {
    const int64_t rows = tile_rows(args);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Range tile{t * rows, smaller((t + 1) * rows, args.columns)};
      int64_t ldx = args.ldx;
      const float* x = widened(args, tile, static_cast<float*>(scratch), ldx);
      with_vectors<max_tile_rows<S>()>(static_cast<int>(tile.size()), [&](auto count) {
        with_dtype(args.weight.dtype, [&](auto tag) {
          constexpr int M = decltype(count)::value;
          run_tile<M, typename decltype(tag)::type>(args, blocks, tile.begin, x, ldx);
        });
      });
    }
  }

 private:
  // Rows of x as float32: themselves, or copies in scratch.
  static const float* widened(const SpmmBitmapArgs& args, Range rows, float* scratch, int64_t& ldx) {
    if (args.dtype == Dtype::kFloat32) return static_cast<const float*>(args.x) + rows.begin * args.ldx;
    const int64_t K = args.weight.cols;
    with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
      const auto* from = static_cast<const typename decltype(tag)::type*>(args.x) + rows.begin * args.ldx;
      for (int64_t m = 0; m < rows.size(); ++m) copy_numbers<S>(from + m * args.ldx, scratch + m * K, K);
    });
    ldx = K;
    return scratch;
  }

  template <int M, class T>
  static void run_tile(const SpmmBitmapArgs& args, Range blocks, int64_t first_row, const float* x, int64_t ldx) {
    constexpr int B = blocks_at_once<S, M>();
    int64_t block = blocks.begin;
    for (; block + B <= blocks.end; block += B) run_blocks<S, M, B, T>(args, block, first_row, x, ldx);
    if constexpr (B > 1) {
      for (; block < blocks.end; ++block) run_blocks<S, M, 1, T>(args, block, first_row, x, ldx);
    }
  }
};

}  // namespace
}  // namespace sparsecore
