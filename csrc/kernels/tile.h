// The inner loop that spmm and conv2d share: one row of a CSR weight times a packed tile of activations that
// stays in cache. Algorithm text, compiled once per instruction set; include after a wrapper that defines Simd.
//
// A tile holds, for each column k of the weight, W = V * lanes consecutive activations; Offset says where.
//
//             W columns
//   k = 0   [ a a a a a a a a ]      acc[W] += values[i] * tile[offset(col_idx[i]) ... + W]
//   k = 1   [ b b b b b b b b ]      for the entries i of one row: per entry one broadcast, one index and
//   ...                              V fused multiply-adds whose second operand comes from memory.
#pragma once

#include <cstdint>

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

// std::min and std::max are inline templates, which must not be instantiated inside a target region.
SPARSECORE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSECORE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SPARSECORE_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// V vectors cover `vectors` in ceil(vectors / limit) equal steps: 13 as 7 + 6 and not as 12 + 1, because every step
// pays once for its indices and values.
inline int balanced_vectors(int64_t vectors, int64_t limit) {
  const int64_t steps = divide_up(vectors, limit);
  return steps == 0 ? 1 : static_cast<int>(divide_up(vectors, steps));
}

template <class S, int V, class Offset>
SPARSECORE_INLINE void multiply_row(const CsrView<float>& weight, int64_t n, const float* tile, Offset offset,
                                    typename S::F32 (&acc)[V]) {
  constexpr int U = V >= kSums / 2 ? 1 : kSums / 2 / V;  // independent sums for narrow tiles
  typename S::F32 sum[U][V];
  SPARSECORE_UNROLL
  for (int u = 0; u < U; ++u) {
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) sum[u][j] = S::zero();
  }
  const auto accumulate = [&](int64_t i, typename S::F32(&to)[V]) SPARSECORE_LAMBDA_INLINE {
    const auto value = S::set1(weight.values[i]);
    const float* x = tile + offset(weight.col_idx[i]);
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) to[j] = S::fma(value, S::load(x + j * S::kLanes), to[j]);
  };
  int64_t i = weight.row_ptr[n];
  const int64_t end = weight.row_ptr[n + 1];
  for (; i + U <= end; i += U) {
    SPARSECORE_UNROLL
    for (int u = 0; u < U; ++u) accumulate(i + u, sum[u]);
  }
  for (; i < end; ++i) accumulate(i, sum[0]);
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) {
    acc[j] = sum[0][j];
    SPARSECORE_UNROLL
    for (int u = 1; u < U; ++u) acc[j] = S::add(acc[j], sum[u][j]);
  }
}

// Calls function(constant V) for the V in 1 .. kMaxVectors that is asked for.
template <int V>
struct VectorCount {
  static constexpr int value = V;
};
template <int V = kMaxVectors, class Function>
SPARSECORE_INLINE void with_vectors(int vectors, Function function) {
  if constexpr (V > 1) {
    if (vectors != V) return with_vectors<V - 1>(vectors, function);
  }
  function(VectorCount<V>{});
}

// std::true_type and std::false_type, which are std templates.
struct True {
  static constexpr bool value = true;
};
struct False {
  static constexpr bool value = false;
};

// Copies n floats with vectors; nothing past src + n is read, nothing past dst + n written.
template <class S>
SPARSECORE_INLINE void copy_floats(const float* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) S::store(dst + i, S::load(src + i));
  if (i < n) S::store_n(dst + i, S::load_n(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

SPARSECORE_INLINE void fill_zero(float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = 0.0f;
}

// dst[c, r] = src[r, c] for rows x cols.
template <class S>
SPARSECORE_INLINE void transpose_block(const float* src, int64_t ld_src, int64_t rows, int64_t cols, float* dst,
                                       int64_t ld_dst) {
  constexpr int L = S::kLanes;
  for (int64_t r = 0; r < rows; r += L) {
    int64_t c = 0;
    if (r + L <= rows) {
      for (; c + L <= cols; c += L) S::transpose(src + r * ld_src + c, ld_src, dst + c * ld_dst + r, ld_dst);
    }
    const int64_t row_end = r + L <= rows ? r + L : rows;
    for (; c < cols; ++c) {
      for (int64_t i = r; i < row_end; ++i) dst[c * ld_dst + i] = src[i * ld_src + c];
    }
  }
}

}  // namespace
}  // namespace sparsecore
