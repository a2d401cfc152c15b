// gemm, int16 activations x int8 weights: algorithm text. Weights are widened to int16 on the way in. A wrapper defines
// Dot with
//   kBlockM, kBlockN: the outputs of a block, whose sums stay in registers;
//   kStep: values of K per vector, a divisor of ldx;
//   Sum, Values: vectors of int32 and of kStep int16;
//   zero(), load(const int16_t*), widen(const int8_t*): a Sum, and Values from kStep of either type;
//   multiply_add(sum, a, b): sum + a * b, exact, in any order of the products;
//   reduce_add(sum): its int32 total.
#pragma once

#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

constexpr int64_t kTileRows = 64;  // rows of x per tile: with K = 4096 they fill half of a 1 MB cache

// BM x BN outputs; every sum is exact, so neither the order nor the block shape shows in the result.
template <class Dot, int BM, int BN>
SPARSECORE_INLINE void run_block(const GemmInt8Args& args, int64_t m, int64_t n) {
  constexpr int64_t kStep = Dot::kStep;
  typename Dot::Sum acc[BM][BN];
  SPARSECORE_UNROLL
  for (int i = 0; i < BM; ++i) {
    SPARSECORE_UNROLL
    for (int j = 0; j < BN; ++j) acc[i][j] = Dot::zero();
  }
  const int16_t* x = args.x + m * args.ldx;
  const int8_t* weight = args.weight + n * args.K;
  const auto accumulate = [&](int64_t k, const int8_t* w, int64_t ldw) SPARSECORE_LAMBDA_INLINE {
    typename Dot::Values wide[BN];
    SPARSECORE_UNROLL
    for (int j = 0; j < BN; ++j) wide[j] = Dot::widen(w + j * ldw);
    SPARSECORE_UNROLL
    for (int i = 0; i < BM; ++i) {
      const auto a = Dot::load(x + i * args.ldx + k);
      SPARSECORE_UNROLL
      for (int j = 0; j < BN; ++j) acc[i][j] = Dot::multiply_add(acc[i][j], a, wide[j]);
    }
  };
  int64_t k = 0;
  for (; k + kStep <= args.K; k += kStep) accumulate(k, weight + k, args.K);
  if (k < args.K) {  // rows of x are padded with zeros to a multiple of kStep, rows of the weight are not
    int8_t tail[BN * kStep] = {};
    for (int j = 0; j < BN; ++j) {
      for (int64_t i = 0; k + i < args.K; ++i) tail[j * kStep + i] = weight[j * args.K + k + i];
    }
    accumulate(k, tail, kStep);
  }
  for (int i = 0; i < BM; ++i) {
    for (int j = 0; j < BN; ++j) {
      const float scale = args.x_scale[m + i] * args.weight_scale[n + j];
      const int32_t acc_i32 = Dot::reduce_add(acc[i][j]);
      args.y[(m + i) * args.ldy + n + j] = float(acc_i32) * scale + args.epilogue.bias_of(n + j);
    }
  }
}

template <class Dot, int BN>
SPARSECORE_INLINE void run_columns(const GemmInt8Args& args, Range m_range, int64_t n) {
  int64_t m = m_range.begin;
  for (; m + Dot::kBlockM <= m_range.end; m += Dot::kBlockM) run_block<Dot, Dot::kBlockM, BN>(args, m, n);
  for (; m < m_range.end; ++m) run_block<Dot, 1, BN>(args, m, n);
}

template <class S, class Dot>
struct GemmS16S8F32 {
  static bool supports(const GemmInt8Args& args) { return args.ldx % Dot::kStep == 0; }
  static int64_t num_tiles(const GemmInt8Args& args) { return divide_up(args.M, kTileRows); }
  static int64_t scratch_bytes(const GemmInt8Args&) { return 0; }

  static void run(const GemmInt8Args& args, Range rows, Range tiles, void*) {
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Range m_range{t * kTileRows, smaller((t + 1) * kTileRows, args.M)};
      int64_t n = rows.begin;
      for (; n + Dot::kBlockN <= rows.end; n += Dot::kBlockN) run_columns<Dot, Dot::kBlockN>(args, m_range, n);
      for (; n < rows.end; ++n) run_columns<Dot, 1>(args, m_range, n);
      for (int64_t m = m_range.begin; m < m_range.end; ++m) {
        activate_row<S>(args.y + m * args.ldy + rows.begin, rows.size(), args.epilogue.activation);
      }
    }
  }
};

}  // namespace
}  // namespace sparsecore
