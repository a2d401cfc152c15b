// The inner loop that spmm and conv2d share for the CSR formats: one row (or one block of rows) of the weight times a
// packed tile of activations that stays in cache. Algorithm text, compiled once per instruction set; include after a
// wrapper that defines Simd.
//
// A tile holds, for each column k of the weight, W = V * lanes consecutive activations; Offset says where.
//
//             W columns
//   k = 0   [ a a a a a a a a ]      acc[W] += values[i] * tile[offset(col_idx[i]) ... + W]
//   k = 1   [ b b b b b b b b ]      for the entries i of one row: per entry one broadcast, one index and
//   ...                              V fused multiply-adds whose second operand comes from memory.
#pragma once

#include <cstdint>

#include "kernels/parts.h"
#include "simd/activation.h"
#include "simd/target.h"
#include "sparsecore/kernel.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

// A fused multiply-add takes 4 cycles and two start per cycle: 8 independent sums keep both units busy.
constexpr int kSums = 8;

// Widest tile: V accumulators, one broadcast value, and room for what the compiler needs beside them.
constexpr int kMaxVectors = 12;

inline int balanced_vectors(int64_t vectors, int64_t limit) { return static_cast<int>(balanced(vectors, limit)); }

// Rows that are computed together: 1 in CSR.
template <class T>
SPARSECORE_INLINE int64_t rows_of_block(const CsrView<T>&) {
  return 1;
}
template <class T>
SPARSECORE_INLINE int64_t rows_of_block(const BlockCsrView<T>& weight) {
  return weight.block_rows;
}

// Vectors that R rows are computed for at once: R * V sums, V activations that the rows share, and room for values (on
// NEON, GCC 12 spills with 24 sums). A single row takes its activations from memory, inside the multiply-add. A wider
// tile is walked in steps.
template <class S, int R>
constexpr int kStepVectors = R == 1 ? kMaxVectors : (S::kRegisters - 6) / (R + 1);

// p, as one address from which all vectors of a row of the tile are loaded. GCC 12 for 64-bit Arm otherwise makes one
// for each: 54 instructions instead of 26 for an entry of conv2d_csr with 12 vectors.
SPARSECORE_INLINE const float* one_address(const float* p) {
#if defined(__aarch64__)
  asm("" : "+r"(p));
#endif
  return p;
}

// to += value * the V vectors at x.
template <class S, int V>
SPARSECORE_INLINE void add_scaled(typename S::F32 value, const float* x, typename S::F32 (&to)[V]) {
  x = one_address(x);
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) to[j] = S::fma(value, S::load(x + j * S::kLanes), to[j]);
}

// acc += values[i] * the V vectors at x_of(i), for i from 0 to length. Values are loaded four at a time: a load for
// each of them beside that of its activations bounds narrow tiles. Measured on Zen 4 with panels, AVX-512 and AVX2:
// 1 vector 15 and 11% faster, 3 to 5 vectors 4 to 10%, 8 nothing to 4%.
template <class S, int V, class XOf>
SPARSECORE_INLINE void multiply_entries(const float* values, int64_t length, XOf x_of, typename S::F32 (&acc)[V]) {
  constexpr int U = V >= kSums / 2 ? 1 : kSums / 2 / V;  // independent sums for narrow tiles
  static_assert(4 % U == 0);
  typename S::F32 sum[U][V];
  SPARSECORE_UNROLL
  for (int u = 0; u < U; ++u) {
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) sum[u][j] = u == 0 ? acc[j] : S::zero();
  }
  int64_t i = 0;
  for (; i + 4 <= length; i += 4) {
    const auto quad = S::load_quad(values + i);
    add_scaled<S>(S::template spread<0>(quad), x_of(i), sum[0]);
    add_scaled<S>(S::template spread<1>(quad), x_of(i + 1), sum[1 % U]);
    add_scaled<S>(S::template spread<2>(quad), x_of(i + 2), sum[2 % U]);
    add_scaled<S>(S::template spread<3>(quad), x_of(i + 3), sum[3 % U]);
  }
  for (; i < length; ++i) add_scaled<S>(S::set1(values[i]), x_of(i), sum[0]);
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) {
    acc[j] = sum[0][j];
    SPARSECORE_UNROLL
    for (int u = 1; u < U; ++u) acc[j] = S::add(acc[j], sum[u][j]);
  }
}

// acc[r] += the entries of row r of block n.
template <class S, int R, int V, class View, class Offset>
SPARSECORE_INLINE void multiply_rows(const View& weight, int64_t n, const float* tile, Offset offset,
                                     typename S::F32 (&acc)[R][V]) {
  const int64_t begin = weight.row_ptr[n], end = weight.row_ptr[n + 1];
  if constexpr (R == 1) {
    multiply_entries<S>(
        weight.values + begin, end - begin,
        [&](int64_t i) SPARSECORE_LAMBDA_INLINE { return tile + offset(weight.col_idx[begin + i]); }, acc[0]);
  } else {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = one_address(tile + offset(weight.col_idx[i]));
      typename S::F32 shared[V];
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) shared[j] = S::load(x + j * S::kLanes);
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto value = S::set1(weight.values[i * R + r]);
        SPARSECORE_UNROLL
        for (int j = 0; j < V; ++j) acc[r][j] = S::fma(value, shared[j], acc[r][j]);
      }
    }
  }
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls function(Constant<V>) for the V in 1 .. kMax that is asked for.
template <int kMax = kMaxVectors, class Function>
SPARSECORE_INLINE void with_vectors(int vectors, Function function) {
  if constexpr (kMax > 1) {
    if (vectors != kMax) return with_vectors<kMax - 1>(vectors, function);
  }
  function(Constant<kMax>{});
}

// Calls function(Constant<R>) for the rows of a block, which are 1, 4 or 8.
template <class T, class Function>
SPARSECORE_INLINE void with_rows_of_block(const CsrView<T>&, Function function) {
  function(Constant<1>{});
}
template <class T, class Function>
SPARSECORE_INLINE void with_rows_of_block(const BlockCsrView<T>& weight, Function function) {
  if (weight.block_rows == 4) {
    function(Constant<4>{});
  } else {
    function(Constant<8>{});
  }
}

// Rows of block n, finished, for all W columns of a tile: row r goes to output(r). sums[R][W] is what they start from,
// or null for zero.
template <class S, int R, class View, class Offset, class Output>
SPARSECORE_INLINE void run_block(const View& weight, const Epilogue& epilogue, int64_t n, const float* tile, int64_t W,
                                 Offset offset, const float* sums, Output output) {
  constexpr int L = S::kLanes;
  for (int64_t at = 0; at < W; at += kStepVectors<S, R> * L) {
    const int vectors = static_cast<int>(smaller((W - at) / L, kStepVectors<S, R>));
    with_vectors<kStepVectors<S, R>>(vectors, [&](auto count) SPARSECORE_LAMBDA_INLINE {
      constexpr int V = decltype(count)::value;
      typename S::F32 acc[R][V];
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) {
        SPARSECORE_UNROLL
        for (int j = 0; j < V; ++j) acc[r][j] = sums == nullptr ? S::zero() : S::load(sums + r * W + at + j * L);
      }
      multiply_rows<S, R, V>(weight, n, tile + at, offset, acc);
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) {
        apply_epilogue<S, V>(acc[r], epilogue.bias_of(n * R + r), epilogue.activation);
        float* to = output(r) + at;
        SPARSECORE_UNROLL
        for (int j = 0; j < V; ++j) S::store(to + j * L, acc[r][j]);
      }
    });
  }
}

// std::true_type and std::false_type, which are std templates.
struct True {
  static constexpr bool value = true;
};
struct False {
  static constexpr bool value = false;
};

}  // namespace
}  // namespace sparsecore
