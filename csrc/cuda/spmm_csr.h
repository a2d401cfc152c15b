// y = activation(W x + bias + residual) with W in CSR, on CUDA cores: any shape, float32 sums. The algorithm text of
// spmm_csr.cu, without a launch, so that tests can run it on the CPU.
//
//   rows     x[M, K], y[M, N]: a warp takes a row of W and kRowTokens rows of x; its lanes share the entries
//   columns  x[batch, K, P], y[batch, N, P]: a thread takes a column of x and walks along a row of W
//
// Index arrays were validated when they were packed; what they hold by now is not trusted: entries outside are skipped.
#pragma once

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace sparsecore::cuda {

inline constexpr int kCsrThreads = 128;
inline constexpr int kRowTokens = 8;

// Entry range of a row, inside the arrays whatever row_ptr says.
struct EntryRange {
  int64_t begin, end;
};
SPARSECORE_DEVICE EntryRange entries_of(const CsrArrays& weight, int64_t row) {
  return {clamp_index(load(weight.row_ptr + row), weight.nnz), clamp_index(load(weight.row_ptr + row + 1), weight.nnz)};
}

template <class X, class Value>
SPARSECORE_KERNEL(kCsrThreads, 8)
spmm_csr_rows(CsrArrays weight, const void* x_any, int64_t M, SpmmOutput out) {
  const auto* x = static_cast<const typename X::Storage*>(x_any);
  const auto* values = static_cast<const typename Value::Storage*>(weight.values);
  const int lane = thread_index() % kWarp;
  const int64_t warps = block_threads() / kWarp;
  for (int64_t row = block_x() * warps + thread_index() / kWarp; row < weight.rows; row += grid_x() * warps) {
    const EntryRange entries = entries_of(weight, row);
    for (int64_t first = block_y() * kRowTokens; first < M; first += grid_y() * kRowTokens) {
      float sums[kRowTokens] = {};
      for (int64_t i = entries.begin + lane; i < entries.end; i += kWarp) {
        const int64_t col = load(weight.col_idx + i);
        if (col < 0 || col >= weight.cols) continue;
        const float value = Value::widen(load(values + i));
        SPARSECORE_UNROLL
        for (int m = 0; m < kRowTokens; ++m) {
          if (first + m < M) sums[m] = fmaf(value, X::widen(load(x + (first + m) * weight.cols + col)), sums[m]);
        }
      }
      SPARSECORE_UNROLL
      for (int m = 0; m < kRowTokens; ++m) {
        const float sum = warp_sum(sums[m]);
        if (lane == 0 && first + m < M) store<X>(out, nullptr, row, (first + m) * weight.rows + row, sum);
      }
    }
  }
}

template <class X, class Value>
SPARSECORE_KERNEL(kCsrThreads, 8)
spmm_csr_columns(CsrArrays weight, const void* x_any, int64_t batch, int64_t columns, SpmmOutput out) {
  const auto* x = static_cast<const typename X::Storage*>(x_any);
  const auto* values = static_cast<const typename Value::Storage*>(weight.values);
  for (int64_t row = block_x(); row < weight.rows; row += grid_x()) {
    const EntryRange entries = entries_of(weight, row);
    for (int64_t at = block_y() * kCsrThreads + thread_index(); at < batch * columns; at += grid_y() * kCsrThreads) {
      const int64_t image = at / columns, column = at % columns;
      const auto* from = x + image * weight.cols * columns + column;
      float sum = 0.0f;
      for (int64_t i = entries.begin; i < entries.end; ++i) {
        const int64_t col = load(weight.col_idx + i);
        if (col < 0 || col >= weight.cols) continue;
        sum = fmaf(Value::widen(load(values + i)), X::widen(load(from + col * columns)), sum);
      }
      store<X>(out, nullptr, row, (image * weight.rows + row) * columns + column, sum);
    }
  }
}

}  // namespace sparsecore::cuda
