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
    const int64_t W = tile_vectors(args) * S::kLanes;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * W, width = smaller(W, num_columns(args) - begin);
      with_vectors<kMaxPanelVectors<S>>(static_cast<int>(divide_up(width, S::kLanes)), [&](auto count) {
        run_tile<decltype(count)::value>(args, blocks, begin, width, static_cast<float*>(scratch));
      });
    }
  }

  template <int V>
  static void run_tile(const SpmmPanelArgs& args, Range blocks, int64_t begin, int64_t width, float* tile) {
    constexpr int64_t W = V * S::kLanes;
    const TileColumns columns{begin, width, W};
    const PanelView<float>& weight = args.weight;
    float* partial = tile + weight.panel_cols * W;
    float* direct = direct_output(args, columns);
    // As direct as the output, whose strides it has.
    const float* residual = direct != nullptr && args.residual != nullptr
                                ? static_cast<const float*>(args.residual) + (direct - static_cast<float*>(args.y))
                                : nullptr;
    const int64_t step = chunk_blocks(weight, W);
    for (int64_t block = blocks.begin; block < blocks.end; block += step) {
      const Range chunk{block, smaller(block + step, blocks.end)};
      const Range rows = rows_of(weight, chunk);
      Start start = Start::kZero;
      if (residual != nullptr) {
        start = Start::kResidual;
      } else if (args.residual != nullptr) {
        start = Start::kPartial;
        load_residual<S>(args, columns, rows, partial);
      }
      run_chunk<S, V>(
          weight, args.epilogue, start, chunk, tile, partial,
          [&](int64_t panel) {
            const int64_t k = panel * weight.panel_cols;
            pack_tile<S>(args, columns, {k, smaller(k + weight.panel_cols, weight.cols)}, tile);
          },
          [](int64_t column) SPARSECORE_LAMBDA_INLINE { return column * W; },
          [=](int64_t n) SPARSECORE_LAMBDA_INLINE { return residual + n * args.ldy; },
          [=](int64_t n, float* sums)
              SPARSECORE_LAMBDA_INLINE { return direct != nullptr ? direct + n * args.ldy : sums; },
          [&](Range n, const float* sums) {
            if (direct == nullptr) store_rows<S>(args, columns, n, sums);
          });
    }
  }
};

}  // namespace
}  // namespace sparsecore
