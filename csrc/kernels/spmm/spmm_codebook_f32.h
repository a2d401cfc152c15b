// spmm, codebook format, rows layout: algorithm text. Runs straight from codes and gaps, column by column, as EIE does
// (Han et al., EIE: Efficient Inference Engine on Compressed Deep Neural Network, ISCA 2016): a column whose
// activations are zero is skipped.
//
// Lanes are rows of x: each decoded entry is multiplied with the activations of its column in all rows of a tile, and
// added to the sums of its output. A single row of x takes the same way with scalars.
//
//   x tile [K][W]     column k:  for each entry (n, value):  sums[n][W] += value * x[k][W]
//
// Every sum runs over its row's entries from left to right, whatever the number of rows of x and the block.
#pragma once

#include "kernels/spmm/activation_tile.h"
#include "kernels/spmm/codebook_segment.h"
#include "sparsecore/codebook.h"

namespace sparsecore {
namespace {

constexpr int64_t kMaxCodebookVectors = 2;          // sums of a block should stay in the second-level cache
constexpr int64_t kCodebookTileBytes = 384 * 1024;  // as for CSR

SPARSECORE_INLINE bool is_zero(const float* x, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t word;
    std::memcpy(&word, x + i, sizeof(word));
    bits |= word << 1;  // without the sign
  }
  return bits == 0;
}

template <class S>
struct SpmmCodebookF32 {
  static bool supports(const SpmmCodebookArgs& args) { return args.layout == Layout::kRows; }

  static int64_t num_tiles(const SpmmCodebookArgs& args) { return divide_up(args.columns, tile_rows(args)); }

  // [ activations of a tile | sums of a block ]
  static int64_t scratch_bytes(const SpmmCodebookArgs& args) {
    const int64_t rows = smaller(args.weight.block_rows, args.weight.rows);
    return (args.weight.cols + rows) * tile_width(args) * int64_t(sizeof(float));
  }

  static void run(const SpmmCodebookArgs& args, Range blocks, Range tiles, void* scratch) {
    const int64_t W = tile_width(args), step = tile_rows(args);
    float* tile = static_cast<float*>(scratch);
    float* sums = tile + args.weight.cols * W;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const TileColumns columns{t * step, smaller(step, args.columns - t * step), W};
      const float* x = packed_activations(args, columns, tile);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int64_t begin = block * args.weight.block_rows;
        const Range rows{begin, smaller(begin + args.weight.block_rows, args.weight.rows)};
        fill_zero(sums, rows.size() * W);
        add_block(args, block, x, W, sums);
        finish(args, columns, rows, sums);
        store(args, columns, rows, sums);
      }
    }
  }

 private:
  // One row is a tile as it is.
  static const float* packed_activations(const SpmmCodebookArgs& args, const TileColumns& columns, float* tile) {
    if (columns.W > 1) {
      pack_tile<S>(args, columns, {0, args.weight.cols}, tile);
      return tile;
    }
    if (args.dtype == Dtype::kFloat32) return static_cast<const float*>(args.x) + columns.begin * args.ldx;
    with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
      const auto* x = static_cast<const typename decltype(tag)::type*>(args.x);
      copy_numbers<S>(x + columns.begin * args.ldx, tile, args.weight.cols);
    });
    return tile;
  }

  static void store(const SpmmCodebookArgs& args, const TileColumns& columns, Range rows, const float* sums) {
    if (columns.W > 1) return store_rows<S>(args, columns, rows, sums);
    with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
      auto* y = static_cast<typename decltype(tag)::type*>(args.y);
      copy_numbers<S>(sums, y + columns.begin * args.ldy + rows.begin, rows.size());
    });
  }

  static int64_t tile_rows(const SpmmCodebookArgs& args) {
    const int64_t bytes_per_vector = S::kLanes * int64_t(sizeof(float)) * (args.weight.cols + 1);
    const int64_t limit = larger(1, smaller(kCodebookTileBytes / bytes_per_vector, kMaxCodebookVectors));
    return balanced_vectors(divide_up(args.columns, S::kLanes), limit) * S::kLanes;
  }

  static int64_t tile_width(const SpmmCodebookArgs& args) { return args.columns == 1 ? 1 : tile_rows(args); }

  static void add_block(const SpmmCodebookArgs& args, int64_t block, const float* x, int64_t W, float* sums) {
    if (W == 1) return add_single(args.weight, block, x, sums);
    with_vectors<kMaxCodebookVectors>(static_cast<int>(W / S::kLanes), [&](auto count) {
      add_vectors<decltype(count)::value>(args.weight, block, x, sums);
    });
  }

  static void add_single(const CodebookView& weight, int64_t block, const float* x, float* sums) {
    for (int64_t k = 0; k < weight.cols; ++k) {
      const float activation = x[k];
      if (activation == 0.0f) continue;
      for_each_entry_of_segment(weight, block, k, [=](int64_t n, float value) SPARSECORE_LAMBDA_INLINE {
        sums[n] = __builtin_fmaf(value, activation, sums[n]);
      });
    }
  }

  template <int V>
  static void add_vectors(const CodebookView& weight, int64_t block, const float* x, float* sums) {
    constexpr int L = S::kLanes;
    for (int64_t k = 0; k < weight.cols; ++k, x += V * L) {
      if (is_zero(x, V * L)) continue;
      typename S::F32 activation[V];
      SPARSECORE_UNROLL
      for (int v = 0; v < V; ++v) activation[v] = S::load(x + v * L);
      for_each_entry_of_segment(weight, block, k, [&](int64_t n, float value) SPARSECORE_LAMBDA_INLINE {
        float* sum = sums + n * (V * L);
        const auto factor = S::set1(value);
        SPARSECORE_UNROLL
        for (int v = 0; v < V; ++v) S::store(sum + v * L, S::fma(factor, activation[v], S::load(sum + v * L)));
      });
    }
  }

  // sums[n][W] += bias and residual, then the activation.
  static void finish(const SpmmCodebookArgs& args, const TileColumns& columns, Range n, float* sums) {
    const Epilogue& epilogue = args.epilogue;
    for (int64_t i = 0; i < n.size() && epilogue.bias != nullptr; ++i) {
      for (int64_t c = 0; c < columns.W; ++c) sums[i * columns.W + c] += epilogue.bias[n.begin + i];
    }
    if (args.residual != nullptr) add_residual(args, columns, n, sums);
    activate_row<S>(sums, n.size() * columns.W, epilogue.activation);
  }

  static void add_residual(const SpmmCodebookArgs& args, const TileColumns& columns, Range n, float* sums) {
    with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
      const auto* residual = static_cast<const typename decltype(tag)::type*>(args.residual) + n.begin;
      float row[S::kLanes];
      for (int64_t c = 0; c < columns.width; ++c) {
        const auto* from = residual + (columns.begin + c) * args.ldy;
        for (int64_t i = 0; i < n.size(); i += S::kLanes) {
          const int count = static_cast<int>(smaller(n.size() - i, S::kLanes));
          S::store(row, S::load_n(from + i, count));
          for (int j = 0; j < count; ++j) sums[(i + j) * columns.W + c] += row[j];
        }
      }
    });
  }
};

}  // namespace
}  // namespace sparsecore
