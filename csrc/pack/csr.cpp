#include <algorithm>
#include <bit>
#include <type_traits>

#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

// What to keep, as functions of the place in weight that give 0 or 1. By bits, because a float compare would take
// the smallest numbers for zero where the user has set flush-to-zero. float16 and bfloat16 travel as bits; like float32
// they are zero when all but the sign bit are.
template <class T>
auto nonzeros(const T* weight) {
  return [=](int64_t k) -> uint8_t {
    if constexpr (std::is_same_v<T, float>) {
      return (std::bit_cast<uint32_t>(weight[k]) << 1) != 0;
    } else if constexpr (std::is_same_v<T, uint16_t>) {
      return (weight[k] & 0x7fff) != 0;
    } else {
      return weight[k] != 0;
    }
  };
}

// Bytes other than 0 and 1, which a bool tensor can hold, are true.
auto trues(const bool* mask) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(mask);
  return [=](int64_t k) -> uint8_t { return bytes[k] != 0; };
}

template <class Keep>
void count_rows(int64_t cols, Range rows, int64_t* counts, Keep keep) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int32_t count = 0;
    for (int64_t k = n * cols; k < (n + 1) * cols; ++k) count += keep(k);
    counts[n] = count;
  }
}

// Without a branch on the data, so that packing runs at one speed for any sparsity. Two things that were no faster:
// writing only the columns here and gathering the values, and finding 8 kept places at a time in a table.
template <class T, class Keep>
void fill_rows(const T* weight, int64_t cols, Range rows, const int32_t* row_ptr, int32_t* col_idx, T* values,
               Keep keep) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int64_t i = row_ptr[n];
    const int64_t end = row_ptr[n + 1];
    for (int64_t k = 0; k < cols && i < end; ++k) {
      col_idx[i] = static_cast<int32_t>(k);
      values[i] = weight[n * cols + k];
      i += keep(n * cols + k);
    }
  }
}

}  // namespace

const char* validate_csr(int64_t cols, int64_t nnz, const int32_t* row_ptr, const int32_t* col_idx, Range rows) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    const int64_t begin = row_ptr[n], end = row_ptr[n + 1];
    if (begin < 0 || end < begin || end > nnz) return "row_ptr must rise from 0 to nnz";
    if (begin == end) continue;
    bool descends = false;
    for (int64_t i = begin + 1; i < end; ++i) descends |= col_idx[i] <= col_idx[i - 1];
    if (descends) return "col_idx must be strictly ascending inside a row";
    if (col_idx[begin] < 0 || col_idx[end - 1] >= cols) return "col_idx must be inside [0, K)";
  }
  return nullptr;
}

int64_t running_sum(int32_t* ptr, int64_t size) {
  int64_t sum = ptr[0] = 0;
  for (int64_t i = 1; i <= size; ++i) ptr[i] = static_cast<int32_t>(sum += ptr[i]);
  return sum;
}

template <class T>
void count_kept(const T* weight, const bool* mask, int64_t cols, Range rows, int64_t* counts) {
  if (mask != nullptr) {
    count_rows(cols, rows, counts, trues(mask));
  } else {
    count_rows(cols, rows, counts, nonzeros(weight));
  }
}

template <class T>
void fill_csr(const T* weight, const bool* mask, int64_t cols, Range rows, const int32_t* row_ptr, int32_t* col_idx,
              T* values) {
  if (mask != nullptr) {
    fill_rows(weight, cols, rows, row_ptr, col_idx, values, trues(mask));
  } else {
    fill_rows(weight, cols, rows, row_ptr, col_idx, values, nonzeros(weight));
  }
}

template <class T>
void unpack_csr(const CsrView<T>& weight, Range rows, T* dense) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    T* row = dense + n * weight.cols;
    std::fill(row, row + weight.cols, T(0));
    for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) row[weight.col_idx[i]] = weight.values[i];
  }
}

template <class T>
void transpose_csr(const CsrView<T>& weight, int32_t* row_ptr, int32_t* col_idx, T* values) {
  std::fill(row_ptr, row_ptr + weight.cols + 1, 0);
  // While filling, row_ptr[k + 1] is the next free place of row k; before that, places are counted one further up.
  for (int64_t i = 0; i < weight.nnz; ++i) {
    if (weight.col_idx[i] + 2 <= weight.cols) ++row_ptr[weight.col_idx[i] + 2];
  }
  for (int64_t k = 2; k <= weight.cols; ++k) row_ptr[k] += row_ptr[k - 1];
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
      const int32_t to = row_ptr[weight.col_idx[i] + 1]++;
      col_idx[to] = static_cast<int32_t>(n);
      values[to] = weight.values[i];
    }
  }
}

#define SPARSECORE_INSTANTIATE(T)                                                                 \
  template void count_kept<T>(const T*, const bool*, int64_t, Range, int64_t*);                   \
  template void fill_csr<T>(const T*, const bool*, int64_t, Range, const int32_t*, int32_t*, T*); \
  template void unpack_csr<T>(const CsrView<T>&, Range, T*);                                      \
  template void transpose_csr<T>(const CsrView<T>&, int32_t*, int32_t*, T*);
SPARSECORE_INSTANTIATE(float)
SPARSECORE_INSTANTIATE(uint16_t)
SPARSECORE_INSTANTIATE(int8_t)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
