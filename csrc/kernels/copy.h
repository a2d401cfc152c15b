// Activations from one layout and dtype to another: the way into tiles and out of them. Include after a wrapper that
// defines Simd.
#pragma once

#include <cstdint>

#include "simd/target.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

// Rows of a tile lie apart in memory, so that the hardware does not see the next one coming: they are fetched that many
// rows ahead.
constexpr int64_t kRowsAhead = 3;
constexpr int64_t kLineBytes = 64, kLineFloats = 16;  // of cache

template <class T>
SPARSECORE_INLINE void prefetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLineBytes / int64_t(sizeof(T))) __builtin_prefetch(p + i, 0);
}
template <class T>
SPARSECORE_INLINE void prefetch_for_writing(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLineBytes / int64_t(sizeof(T))) __builtin_prefetch(p + i, 1);
}

// std::min and std::max are inline templates, which must not be instantiated inside a target region.
SPARSECORE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPARSECORE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SPARSECORE_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls function(Type<T>) for the type that a dtype is stored as.
template <class T>
struct Type {
  using type = T;
};
template <class Function>
SPARSECORE_INLINE void with_dtype(Dtype dtype, Function function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function(Type<float>{});
    case Dtype::kBFloat16:
      return function(Type<BFloat16>{});
    case Dtype::kFloat16:
      return function(Type<Float16>{});
  }
}

// Copies n numbers with vectors; nothing past src + n is read, nothing past dst + n written.
template <class S, class From, class To>
SPARSECORE_INLINE void copy_numbers(const From* src, To* dst, int64_t n) {
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) S::store(dst + i, S::load(src + i));
  if (i < n) S::store_n(dst + i, S::load_n(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

// dst[i] = src[i * stride] for i < n; nothing past the last of them is read.
template <class S, class T>
SPARSECORE_INLINE void copy_strided(const T* src, int64_t stride, float* dst, int64_t n) {
  constexpr int L = S::kLanes;
  if (stride == 1) {
    copy_numbers<S>(src, dst, n);
  } else if (stride == 2) {
    int64_t i = 0;
    for (; i + L <= n; i += L) {
      S::store(dst + i, S::even(S::load(src + 2 * i), S::load_n(src + 2 * i + L, L - 1)));
    }
    if (i < n) {
      const int count = static_cast<int>(n - i), reach = 2 * count - 1;
      const auto low = S::load_n(src + 2 * i, reach < L ? reach : L);
      const auto high = reach > L ? S::load_n(src + 2 * i + L, reach - L) : S::zero();
      S::store_n(dst + i, S::even(low, high), count);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) S::store_n(dst + i, S::load_n(src + i * stride, 1), 1);
  }
}

SPARSECORE_INLINE void fill_zero(float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = 0.0f;
}

// dst[c, r] = src[r, c] for a square of lanes, or the first rows and cols of one.
template <class S, class From, class To>
SPARSECORE_INLINE void transpose_part(const From* src, int64_t ld_src, int rows, int cols, To* dst, int64_t ld_dst) {
  constexpr int L = S::kLanes;
  float square[L * L], transposed[L * L];
  for (int i = 0; i < L; ++i) S::store(square + i * L, i < rows ? S::load_n(src + i * ld_src, cols) : S::zero());
  S::transpose(square, L, transposed, L);
  for (int i = 0; i < cols; ++i) S::store_n(dst + i * ld_dst, S::load(transposed + i * L), rows);
}
template <class S, class From, class To>
SPARSECORE_INLINE void transpose_square(const From* src, int64_t ld_src, To* dst, int64_t ld_dst) {
  transpose_part<S>(src, ld_src, S::kLanes, S::kLanes, dst, ld_dst);
}
template <class S>
SPARSECORE_INLINE void transpose_square(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
  S::transpose(src, ld_src, dst, ld_dst);
}

// dst[c, r] = src[r, c] for rows x cols.
template <class S, class From, class To>
SPARSECORE_INLINE void transpose_block(const From* src, int64_t ld_src, int64_t rows, int64_t cols, To* dst,
                                       int64_t ld_dst) {
  constexpr int L = S::kLanes;
  for (int64_t r = 0; r < rows; r += L) {
    for (int64_t c = 0; c < cols; c += L) {
      const From* from = src + r * ld_src + c;
      To* to = dst + c * ld_dst + r;
      if (r + L <= rows && c + L <= cols) {
        transpose_square<S>(from, ld_src, to, ld_dst);
      } else {
        transpose_part<S>(from, ld_src, static_cast<int>(smaller(rows - r, L)), static_cast<int>(smaller(cols - c, L)),
                          to, ld_dst);
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore
