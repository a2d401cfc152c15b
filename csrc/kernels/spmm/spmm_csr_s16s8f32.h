// spmm, int8 CSR x int16 activations: algorithm text. A tile of rows of x is transposed to [K][W], then every row of
// the weight runs over it. A wrapper defines Wide with
//   kColumns: int16 columns of one vector, a multiple of the lanes of float32;
//   kMaxVectors: of a tile;
//   multiply_row<V>(weight, n, tile, acc): the exact sums of row n for V vectors, as float32 in the order of columns.
#pragma once

#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

constexpr int64_t kInt8TileBytes = 384 * 1024;

template <class Wide>
SPARSECORE_INLINE int tile_vectors(const SpmmInt8Args& args) {
  const int64_t bytes_per_vector = Wide::kColumns * int64_t(sizeof(int16_t)) * (args.weight.cols + 1);
  const int64_t limit = smaller(larger(kInt8TileBytes / bytes_per_vector, 1), Wide::kMaxVectors);
  return balanced_vectors(divide_up(args.M, Wide::kColumns), limit);
}

void pack_tile(const SpmmInt8Args& args, int64_t begin, int64_t width, int64_t W, int16_t* tile) {
  for (int64_t k = 0; k < args.weight.cols; ++k) {
    for (int64_t i = 0; i < width; ++i) tile[k * W + i] = args.x[(begin + i) * args.ldx + k];
    for (int64_t i = width; i < W; ++i) tile[k * W + i] = 0;
  }
}

template <class S, class Wide, int V>
void run_tile(const SpmmInt8Args& args, Range rows, int64_t begin, int64_t width, const int16_t* tile,
              const float* x_scale, float* out) {
  constexpr int64_t W = V * Wide::kColumns;
  constexpr int kVectors = W / S::kLanes;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    typename S::F32 acc[kVectors];
    Wide::template multiply_row<V>(args.weight, n, tile, acc);
    const auto scale = S::set1(args.weight_scale[n]);
    SPARSECORE_UNROLL
    for (int j = 0; j < kVectors; ++j) acc[j] = S::mul(acc[j], S::mul(S::load(x_scale + j * S::kLanes), scale));
    apply_epilogue<S, kVectors>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
    const int64_t slot = (n - rows.begin) % S::kLanes;
    SPARSECORE_UNROLL
    for (int j = 0; j < kVectors; ++j) S::store(out + slot * W + j * S::kLanes, acc[j]);
    if (slot == S::kLanes - 1 || n + 1 == rows.end) {
      transpose_block<S>(out, W, slot + 1, width, args.y + begin * args.ldy + n - slot, args.ldy);
    }
  }
}

// One row of x: nothing to share between columns, so plain dot products over the entries.
template <class S>
void run_dot(const SpmmInt8Args& args, Range rows) {
  const CsrView<int8_t>& weight = args.weight;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int32_t acc_i32[4] = {};
    int64_t i = weight.row_ptr[n];
    const int64_t end = weight.row_ptr[n + 1];
    for (; i + 4 <= end; i += 4) {
      SPARSECORE_UNROLL
      for (int u = 0; u < 4; ++u) acc_i32[u] += args.x[weight.col_idx[i + u]] * weight.values[i + u];
    }
    for (; i < end; ++i) acc_i32[0] += args.x[weight.col_idx[i]] * weight.values[i];
    const int32_t total = acc_i32[0] + acc_i32[1] + acc_i32[2] + acc_i32[3];
    args.y[n] = float(total) * (args.x_scale[0] * args.weight_scale[n]) + args.epilogue.bias_of(n);
  }
  activate_row<S>(args.y + rows.begin, rows.size(), args.epilogue.activation);
}

template <class S, class Wide>
struct SpmmCsrS16S8F32 {
  static bool supports(const SpmmInt8Args&) { return true; }

  static int64_t num_tiles(const SpmmInt8Args& args) {
    return args.M == 0 ? 0 : divide_up(args.M, tile_vectors<Wide>(args) * Wide::kColumns);
  }

  // [ L rows of output, float | scales of the tile, float | tile, int16 ]
  static int64_t scratch_bytes(const SpmmInt8Args& args) {
    const int64_t W = tile_vectors<Wide>(args) * Wide::kColumns;
    return (S::kLanes + 1) * W * int64_t(sizeof(float)) + args.weight.cols * W * int64_t(sizeof(int16_t));
  }

  static void run(const SpmmInt8Args& args, Range rows, Range tiles, void* scratch) {
    if (args.M == 1) return run_dot<S>(args, rows);
    const int vectors = tile_vectors<Wide>(args);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * vectors * Wide::kColumns;
      const int64_t width = smaller(vectors * Wide::kColumns, args.M - begin);
      with_vectors<Wide::kMaxVectors>(static_cast<int>(divide_up(width, Wide::kColumns)), [&](auto count) {
        constexpr int V = decltype(count)::value;
        constexpr int64_t W = V * Wide::kColumns;
        float* out = static_cast<float*>(scratch);
        float* x_scale = out + S::kLanes * W;
        int16_t* tile = reinterpret_cast<int16_t*>(x_scale + W);
        copy_numbers<S>(args.x_scale + begin, x_scale, width);
        fill_zero(x_scale + width, W - width);
        pack_tile(args, begin, width, W, tile);
        run_tile<S, Wide, V>(args, rows, begin, width, tile, x_scale, out);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
