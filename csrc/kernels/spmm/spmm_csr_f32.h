// spmm, CSR float32: algorithm text. A tile of activations is packed to [K][W] scratch (from rows by transposing
// it), then every row of the weight runs over it. One single column runs as dot products on x itself.
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
  return num_columns(args) == 1 && (args.layout == Layout::kRows || (args.ldx == 1 && args.ldy == 1));
}

template <class S>
SPARSECORE_INLINE int tile_vectors(const SpmmArgs& args) {
  const int64_t bytes_per_vector = S::kLanes * int64_t(sizeof(float)) * (args.weight.cols + 1);
  int64_t limit = kTileBytes / bytes_per_vector;
  limit = smaller(larger(limit, kMinVectors), kMaxVectors);
  return balanced_vectors(divide_up(num_columns(args), S::kLanes), limit);
}

template <class S, int V>
void run_tile(const SpmmArgs& args, Range rows, int64_t begin, int64_t width, const float* tile, float* out) {
  constexpr int L = S::kLanes;
  constexpr int64_t W = V * L;
  const bool is_rows = args.layout == Layout::kRows;
  float* direct = direct_output(args, begin, width, W);

  for (int64_t n = rows.begin; n < rows.end; ++n) {
    typename S::F32 acc[V];
    multiply_row<S, V>(args.weight, n, tile, [](int32_t k) { return int64_t(k) * W; }, acc);
    apply_epilogue<S, V>(acc, args.epilogue.bias_of(n), args.epilogue.activation);

    const int64_t slot = is_rows ? (n - rows.begin) % L : 0;
    float* to = direct != nullptr ? direct + n * args.ldy : out + slot * W;
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) S::store(to + j * L, acc[j]);
    if (direct != nullptr) continue;

    if (is_rows) {  // L finished rows of y^T make full vectors of y
      if (slot == L - 1 || n + 1 == rows.end) {
        transpose_block<S>(out, W, slot + 1, width, args.y + begin * args.ldy + n - slot, args.ldy);
      }
    } else {
      store_columns<S>(args, n, begin, width, out);
    }
  }
}

template <class S>
void run_dot(const SpmmArgs& args, Range rows) {
  constexpr int L = S::kLanes;
  constexpr int U = 4;  // sums in flight
  const CsrView<float>& weight = args.weight;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    typename S::F32 sum[U];
    SPARSECORE_UNROLL
    for (int u = 0; u < U; ++u) sum[u] = S::zero();
    const auto accumulate = [&](int64_t i, typename S::F32& to) SPARSECORE_LAMBDA_INLINE {
      to = S::fma(S::load(weight.values + i), S::gather(args.x, weight.col_idx + i), to);
    };
    int64_t i = weight.row_ptr[n];
    const int64_t end = weight.row_ptr[n + 1];
    for (; i + U * L <= end; i += U * L) {
      SPARSECORE_UNROLL
      for (int u = 0; u < U; ++u) accumulate(i + u * L, sum[u]);
    }
    for (; i + L <= end; i += L) accumulate(i, sum[0]);
    float total = S::reduce_add(S::add(S::add(sum[0], sum[1]), S::add(sum[2], sum[3])));
    for (; i < end; ++i) total = __builtin_fmaf(weight.values[i], args.x[weight.col_idx[i]], total);
    args.y[n] = total + args.epilogue.bias_of(n);
  }
  activate_row<S>(args.y + rows.begin, rows.size(), args.epilogue.activation);
}

template <class S>
struct SpmmCsrF32 {
  static bool supports(const SpmmArgs&) { return true; }

  static int64_t num_tiles(const SpmmArgs& args) {
    if (num_columns(args) == 0) return 0;
    return is_dot(args) ? 1 : divide_up(num_columns(args), tile_vectors<S>(args) * S::kLanes);
  }

  static int64_t scratch_bytes(const SpmmArgs& args) {
    if (is_dot(args)) return 0;
    const int64_t W = tile_vectors<S>(args) * S::kLanes;
    return (args.weight.cols + S::kLanes) * W * int64_t(sizeof(float));  // the tile, and L rows of output
  }

  static void run(const SpmmArgs& args, Range rows, Range tiles, void* scratch) {
    if (is_dot(args)) return run_dot<S>(args, rows);
    const int vectors = tile_vectors<S>(args);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * vectors * S::kLanes;
      const int64_t width = smaller(vectors * S::kLanes, num_columns(args) - begin);
      with_vectors(static_cast<int>(divide_up(width, S::kLanes)), [&](auto count) {
        constexpr int V = decltype(count)::value;
        float* tile = static_cast<float*>(scratch);
        float* out = tile + args.weight.cols * V * S::kLanes;
        pack_tile<S>(args, begin, width, {0, args.weight.cols}, V * S::kLanes, tile);
        run_tile<S, V>(args, rows, begin, width, tile, out);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
