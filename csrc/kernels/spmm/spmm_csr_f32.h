// spmm, CSR and block CSR, float32: algorithm text. A tile of activations is packed to [K][W] scratch (from rows by
// transposing it), then every row or block of rows of the weight runs over it. One single column runs as dot products
// on x itself.
#pragma once

#include "kernels/spmm/activation_tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// A packed tile should leave room in a 512 KB second-level cache for the weight that streams past it.
constexpr int64_t kTileBytes = 384 * 1024;
constexpr int64_t kMinVectors = 4;  // narrower tiles read too many indices per multiply-add

// x is one contiguous vector of K floats and y one of N.
SPARSECORE_INLINE bool is_dot(const SpmmArgs& args) {
  return num_columns(args) == 1 && args.dtype == Dtype::kFloat32 &&
         (args.layout == Layout::kRows || (args.ldx == 1 && args.ldy == 1));
}
SPARSECORE_INLINE bool is_dot(const SpmmBlockArgs&) { return false; }

template <class S>
void run_dot(const SpmmArgs& args, Range rows) {
  constexpr int L = S::kLanes;
  constexpr int U = 4;  // sums in flight
  const CsrView<float>& weight = args.weight;
  const float* x = static_cast<const float*>(args.x);
  const float* residual = static_cast<const float*>(args.residual);
  float* y = static_cast<float*>(args.y);
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    typename S::F32 sum[U];
    SPARSECORE_UNROLL
    for (int u = 0; u < U; ++u) sum[u] = S::zero();
    const auto accumulate = [&](int64_t i, typename S::F32& to) SPARSECORE_LAMBDA_INLINE {
      to = S::fma(S::load(weight.values + i), S::gather(x, weight.col_idx + i), to);
    };
    int64_t i = weight.row_ptr[n];
    const int64_t end = weight.row_ptr[n + 1];
    for (; i + U * L <= end; i += U * L) {
      SPARSECORE_UNROLL
      for (int u = 0; u < U; ++u) accumulate(i + u * L, sum[u]);
    }
    for (; i + L <= end; i += L) accumulate(i, sum[0]);
    float total = S::reduce_add(S::add(S::add(sum[0], sum[1]), S::add(sum[2], sum[3])));
    for (; i < end; ++i) total = __builtin_fmaf(weight.values[i], x[weight.col_idx[i]], total);
    y[n] = total + args.epilogue.bias_of(n) + (residual == nullptr ? 0.0f : residual[n]);
  }
  activate_row<S>(y + rows.begin, rows.size(), args.epilogue.activation);
}
template <class S>
void run_dot(const SpmmBlockArgs&, Range) {}

// Rows of output that are finished before they are stored: as many as make full vectors of y in the rows layout.
template <class S, class Args>
SPARSECORE_INLINE int64_t buffer_rows(const Args& args) {
  return larger(args.layout == Layout::kRows ? S::kLanes : 1, rows_of_block(args.weight));
}

template <class S, class Args>
SPARSECORE_INLINE int64_t tile_vectors(const Args& args) {
  const int64_t bytes_per_vector = S::kLanes * int64_t(sizeof(float)) * (args.weight.cols + 1);
  const int64_t limit = smaller(larger(kTileBytes / bytes_per_vector, kMinVectors), kMaxVectors);
  return balanced_vectors(divide_up(num_columns(args), S::kLanes), limit);
}

template <class S, int R, class Args>
void run_tile(const Args& args, Range blocks, const TileColumns& columns, const float* tile, float* buffer) {
  const int64_t W = columns.W, slots = buffer_rows<S>(args);
  float* direct = args.residual == nullptr ? direct_output(args, columns) : nullptr;
  int64_t first = blocks.begin * R;  // row in the first slot of the buffer
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t n = block * R;
    if (args.residual != nullptr && n == first) {
      load_residual<S>(args, columns, {n, smaller(n + slots, blocks.end * R)}, buffer);
    }
    float* rows = buffer + (n - first) * W;
    run_block<S, R>(
        args.weight, args.epilogue, block, tile, W, [=](int32_t k) SPARSECORE_LAMBDA_INLINE { return int64_t(k) * W; },
        args.residual == nullptr ? nullptr : rows,
        [=](int r) SPARSECORE_LAMBDA_INLINE { return direct != nullptr ? direct + (n + r) * args.ldy : rows + r * W; });
    if (n + R - first == slots || block + 1 == blocks.end) {
      if (direct == nullptr) store_rows<S>(args, columns, {first, n + R}, buffer);
      first = n + R;
    }
  }
}

template <class S, class Args>
struct SpmmCsrF32 {
  static bool supports(const Args& args) {
    const int64_t R = rows_of_block(args.weight);
    return R == 1 || R == 4 || R == 8;
  }

  static int64_t num_tiles(const Args& args) {
    if (num_columns(args) == 0) return 0;
    return is_dot(args) ? 1 : divide_up(num_columns(args), tile_vectors<S>(args) * S::kLanes);
  }

  // [ activations | rows of output ]
  static int64_t scratch_bytes(const Args& args) {
    if (is_dot(args)) return 0;
    const int64_t W = tile_vectors<S>(args) * S::kLanes;
    return (args.weight.cols + buffer_rows<S>(args)) * W * int64_t(sizeof(float));
  }

  static void run(const Args& args, Range blocks, Range tiles, void* scratch) {
    if (is_dot(args)) return run_dot<S>(args, blocks);
    const int64_t W = tile_vectors<S>(args) * S::kLanes;
    float* tile = static_cast<float*>(scratch);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * W, width = smaller(W, num_columns(args) - begin);
      const TileColumns columns{begin, width, divide_up(width, S::kLanes) * S::kLanes};
      pack_tile<S>(args, columns, {0, args.weight.cols}, tile);
      with_rows_of_block(args.weight, [&](auto rows) {
        run_tile<S, decltype(rows)::value>(args, blocks, columns, tile, tile + args.weight.cols * W);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
