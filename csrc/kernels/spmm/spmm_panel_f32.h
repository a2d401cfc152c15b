// spmm, panel format float32: algorithm text.
#pragma once

#include "kernels/panel.h"
#include "kernels/spmm/activation_tile.h"

namespace sparsecore {
namespace {

template <class S>
struct SpmmPanelF32 {
  static bool supports(const SpmmPanelArgs&) { return true; }

  static int tile_vectors(const SpmmPanelArgs& args) {
    const int64_t vector_bytes = args.weight.panel_cols * S::kLanes * int64_t(sizeof(float));
    const int64_t limit = smaller(larger(kPanelBytes / vector_bytes, 1), kMaxPanelVectors<S>);
    return balanced_vectors(divide_up(num_columns(args), S::kLanes), limit);
  }

  static int64_t num_tiles(const SpmmPanelArgs& args) {
    return divide_up(num_columns(args), tile_vectors(args) * S::kLanes);
  }

  // [ activations of one panel | sums of one chunk ]
  static int64_t scratch_bytes(const SpmmPanelArgs& args) {
    const int64_t W = tile_vectors(args) * S::kLanes;
    return (args.weight.panel_cols * W + partial_floats(args.weight, W)) * int64_t(sizeof(float));
  }

  static void run(const SpmmPanelArgs& args, Range blocks, Range tiles, void* scratch) {
    const int64_t width = tile_vectors(args) * S::kLanes;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t columns = smaller(width, num_columns(args) - t * width);
      with_vectors<kMaxPanelVectors<S>>(static_cast<int>(divide_up(columns, S::kLanes)), [&](auto count) {
        run_tile<decltype(count)::value>(args, blocks, t * width, columns, static_cast<float*>(scratch));
      });
    }
  }

  template <int V>
  static void run_tile(const SpmmPanelArgs& args, Range blocks, int64_t begin, int64_t width, float* tile) {
    constexpr int64_t W = V * S::kLanes;
    const PanelView<float>& weight = args.weight;
    float* partial = tile + weight.panel_cols * W;
    float* direct = direct_output(args, begin, width, W);
    const int64_t step = chunk_blocks(weight, W);
    for (int64_t block = blocks.begin; block < blocks.end; block += step) {
      const Range chunk{block, smaller(block + step, blocks.end)};
      run_chunk<S, V>(
          weight, args.epilogue, chunk, tile, partial,
          [&](int64_t panel) {
            const int64_t k = panel * weight.panel_cols;
            pack_tile<S>(args, begin, width, {k, smaller(k + weight.panel_cols, weight.cols)}, W, tile);
          },
          [](int64_t column) SPARSECORE_LAMBDA_INLINE { return column * W; },
          [=](int64_t n, float* sums)
              SPARSECORE_LAMBDA_INLINE { return direct != nullptr ? direct + n * args.ldy : sums; });
      if (direct == nullptr) store_chunk(args, chunk, begin, width, W, partial);
    }
  }

  static void store_chunk(const SpmmPanelArgs& args, Range blocks, int64_t begin, int64_t width, int64_t W,
                          const float* finished) {
    const int64_t n = blocks.begin * args.weight.block_rows;
    const int64_t rows = smaller(blocks.end * args.weight.block_rows, args.weight.rows) - n;
    if (args.layout == Layout::kRows) {
      transpose_block<S>(finished, W, rows, width, args.y + begin * args.ldy + n, args.ldy);
    } else {
      for (int64_t i = 0; i < rows; ++i) store_columns<S>(args, n + i, begin, width, finished + i * W);
    }
  }
};

}  // namespace
}  // namespace sparsecore
