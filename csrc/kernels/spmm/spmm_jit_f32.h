// spmm, generated code: algorithm text. A tile is packed to [vector][column of the weight][kLanes], but for vectors of
// x[K, P] that code for 1x1 convolutions reads where they lie.
#pragma once

#include "kernels/jit_tile.h"

namespace sparsecore {
namespace {

template <class S>
struct SpmmJitF32 {
  static bool supports(const SpmmJitArgs&) { return true; }

  // Activations of a tile: they share second-level cache with code and values that stream through.
  static constexpr int64_t kTileBytes = 1024 * 1024;

  // From one vector of a tile to the next: an odd number of cache lines, so that they do not meet in the same sets.
  static int64_t vector_floats(const JitView& weight) { return (weight.cols | 1) * JitView::kLanes; }

  static int64_t tile_vectors(const SpmmJitArgs& args) {
    const int64_t cached = kTileBytes / (vector_floats(args.weight) * int64_t(sizeof(float)));
    return jit_tile_vectors(divide_up(num_columns(args), JitView::kLanes), cached, args.threads);
  }

  static int64_t num_tiles(const SpmmJitArgs& args) {
    return divide_up(num_columns(args), tile_vectors(args) * JitView::kLanes);
  }

  // [ tile | sums ]
  static int64_t tile_floats(const SpmmJitArgs& args) { return tile_vectors(args) * vector_floats(args.weight); }
  static int64_t scratch_bytes(const SpmmJitArgs& args) {
    return (tile_floats(args) + jit_sums_floats(args.weight)) * int64_t(sizeof(float));
  }

  static void run(const SpmmJitArgs& args, Range blocks, Range tiles, void* memory) {
    const JitView& weight = args.weight;
    const int64_t T = tile_vectors(args), W = T * JitView::kLanes;
    float* tile = static_cast<float*>(memory);
    float* sums = tile + tile_floats(args);
    JitTaps taps;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * W, width = smaller(W, num_columns(args) - begin);
      const TileColumns columns{begin, width, W};
      pack(args, columns, tile);
      run_jit_tile(
          weight, blocks, divide_up(width, JitView::kLanes), sums,
          [&](int64_t v, int64_t panel) -> const void* {
            const int64_t k = panel * weight.panel_cols;
            const float* packed = tile + v * vector_floats(weight) + k * JitView::kLanes;
            if (weight.kernel_h == 0) return packed;
            const float* x = in_place(args, begin + v * JitView::kLanes);
            taps.channel = (x == nullptr ? JitView::kLanes : args.ldx) * int64_t(sizeof(float));
            taps.rows[0] = reinterpret_cast<const uint8_t*>(x == nullptr ? packed : x + k * args.ldx);
            return &taps;
          },
          [&](Range n, int64_t v) { will_write(args, begin + v * JitView::kLanes, n); },
          [&](Range n, int64_t v, float* to) { return outputs_of(args, begin + v * JitView::kLanes, n, to); },
          [&](Range n, float* rows) {
            if (args.layout == Layout::kRows) {
              finish_transposed(args, {begin, width, JitView::kSumsStride}, n, rows);
            } else {
              finish(args, {begin, width, JitView::kSumsStride}, n, rows);
            }
          });
    }
  }

  // A vector of columns from `begin` on, cut to the image that the first of them is in.
  static void will_write(const SpmmJitArgs& args, int64_t begin, Range n) {
    if (args.layout == Layout::kColumns) {
      const int64_t offset = begin / args.columns * args.y_batch_stride + begin % args.columns;
      fetch_jit_outputs(args, n, offset, args.ldy);
    }
  }

  // Rows n to y[batch, N, P], as far as the code has not done that.
  static void finish(const SpmmJitArgs& args, const TileColumns& columns, Range n, float* sums) {
    SpmmJitArgs rest = args;  // of what the code has added to
    rest.residual = nullptr;
    rest.epilogue.bias = nullptr;
    for (int64_t done = 0; done < columns.width;) {
      const bool is_added = code_adds(args, columns.begin + done);
      int64_t end = done + JitView::kLanes;
      while (end < columns.width && code_adds(args, columns.begin + end) == is_added) end += JitView::kLanes;
      const TileColumns part{columns.begin + done, smaller(end, columns.width) - done, columns.W};
      if (!is_added) {
        finish_columns(args, part, n, sums + done);
      } else if (!code_writes(args)) {
        finish_columns(rest, part, n, sums + done);
      }
      done += part.width;
    }
  }

  static void finish_columns(const SpmmJitArgs& args, const TileColumns& columns, Range n, float* sums) {
    finish_jit_rows<S>(args, n, sums, [&](int64_t row, auto function) SPARSECORE_LAMBDA_INLINE {
      for_each_image(args, columns,
                     [&](int64_t image, int64_t column, int64_t at, int64_t length) SPARSECORE_LAMBDA_INLINE {
                       function(image * args.y_batch_stride + row * args.ldy + column, at, length);
                     });
    });
  }

  // Whether a vector of columns from `begin` on lies side by side as the code takes it, in x, y and the residual.
  static bool is_plain(const SpmmJitArgs& args, int64_t begin) {
    return args.layout == Layout::kColumns && args.dtype == Dtype::kFloat32 &&
           begin % args.columns + JitView::kLanes <= args.columns;
  }

  // Whether the code adds residual and bias to that vector, and whether it then writes it to y.
  static bool code_adds(const SpmmJitArgs& args, int64_t begin) {
    return args.weight.writes_outputs() && is_plain(args, begin);
  }
  static bool code_writes(const SpmmJitArgs& args) {
    const Activation activation = args.epilogue.activation;
    return activation == Activation::kNone || activation == Activation::kRelu || activation == Activation::kRelu6;
  }

  static JitOutputs outputs_of(const SpmmJitArgs& args, int64_t begin, Range n, float* sums) {
    JitOutputs outputs = jit_sums_as_outputs(sums);
    if (!code_adds(args, begin)) return outputs;
    const int64_t at = begin / args.columns * args.y_batch_stride + begin % args.columns + n.begin * args.ldy;
    const int64_t stride = args.ldy * int64_t(sizeof(float));
    if (args.residual != nullptr) {
      outputs.residual = reinterpret_cast<const uint8_t*>(static_cast<const float*>(args.residual) + at);
      outputs.residual_stride = stride;
    }
    if (args.epilogue.bias != nullptr) outputs.bias = args.epilogue.bias + n.begin;
    if (!code_writes(args)) return outputs;
    outputs.y = reinterpret_cast<uint8_t*>(static_cast<float*>(args.y) + at);
    outputs.y_stride = stride;
    if (args.epilogue.activation != Activation::kNone) outputs.least = 0.0f;
    if (args.epilogue.activation == Activation::kRelu6) outputs.most = 6.0f;
    return outputs;
  }

  // Up to so many rows of the weight read activations where they lie: every block of rows loads them again, and often
  // across cache lines. Measured on Zen 4 over a packed copy, hot at 90 and 70% zeros: 64 -> 128 at 56x56 0.98 and 0.90
  // of its time, 512 -> 128 at 28x28 0.93 and 0.88, 64 -> 256 at 56x56 1.05 and 0.98, 512 -> 256 at 14x14 1.06 and
  // 0.96, 1024 -> 1024 at 7x7 1.38 and 1.05.
  static constexpr int64_t kMostInPlaceRows = 128;

  // Column `begin` of x, if the code reads a vector from there; else null.
  static const float* in_place(const SpmmJitArgs& args, int64_t begin) {
    const bool can_be = args.weight.kernel_h != 0 && args.weight.rows <= kMostInPlaceRows;
    if (!can_be || !is_plain(args, begin)) return nullptr;
    return static_cast<const float*>(args.x) + begin / args.columns * args.x_batch_stride + begin % args.columns;
  }

  static void pack(const SpmmJitArgs& args, const TileColumns& columns, float* tile) {
    const JitView& weight = args.weight;
    constexpr int64_t lanes = JitView::kLanes;
    const int64_t vector = vector_floats(weight);
    const bool is_one_image = columns.begin / args.columns == (columns.begin + columns.width - 1) / args.columns;
    // In the columns layout rows of x are read along, and not a vector of each in turn.
    const int64_t whole = args.layout == Layout::kColumns && is_one_image ? columns.width / lanes : 0;
    if (whole > 0 && in_place(args, columns.begin) == nullptr) {
      with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
        using T = typename decltype(tag)::type;
        const T* from = static_cast<const T*>(args.x) + columns.begin / args.columns * args.x_batch_stride +
                        columns.begin % args.columns;
        for (int64_t k = 0; k < weight.cols; ++k, from += args.ldx) {
          for (int64_t v = 0; v < whole; ++v) copy_numbers<S>(from + v * lanes, tile + v * vector + k * lanes, lanes);
        }
      });
    }
    for (int64_t done = whole * lanes; done < columns.width; done += lanes) {
      if (in_place(args, columns.begin + done) != nullptr) continue;
      const TileColumns part{columns.begin + done, smaller(columns.width - done, lanes), lanes};
      pack_tile<S>(args, part, {0, weight.cols}, tile + done / lanes * vector);
    }
  }

  // Rows n to y[M, N], of which they are columns.
  static void finish_transposed(const SpmmJitArgs& args, const TileColumns& columns, Range n, float* sums) {
    float residual[JitView::kSumsStride];
    const int64_t width = divide_up(columns.width, S::kLanes) * S::kLanes;
    for (int64_t row = n.begin; row < n.end; ++row) {
      float* to = sums + (row - n.begin) * JitView::kSumsStride;
      if (args.residual != nullptr) load_residual<S>(args, columns, {row, row + 1}, residual);
      finish_jit_part<S>(args.epilogue, row, to, args.residual == nullptr ? nullptr : residual, to, width);
    }
    store_rows<S>(args, columns, n, sums);
  }
};

}  // namespace
}  // namespace sparsecore
