// Random CSR weights, plain and in guarded buffers.
#pragma once

#include <cstdint>
#include <ostream>
#include <type_traits>
#include <vector>

#include "guarded.h"
#include "random.h"
#include "sparsecore/views.h"

namespace sparsecore::test {

enum class Fill {
  kEmpty,   // no entry at all
  kSingle,  // one non-zero
  kTenth,
  kHalf,
  kFull,
  kRagged,  // rows from empty to full, every third one empty
};
inline constexpr Fill kAllFills[] = {Fill::kEmpty, Fill::kSingle, Fill::kTenth,
                                     Fill::kHalf,  Fill::kFull,   Fill::kRagged};

inline std::ostream& operator<<(std::ostream& out, Fill fill) {
  constexpr const char* kNames[] = {"empty", "single", "0.1", "0.5", "full", "ragged"};
  return out << kNames[static_cast<size_t>(fill)];
}

template <class T>
struct Csr {
  int64_t rows = 0, cols = 0;
  std::vector<int32_t> row_ptr, col_idx;
  std::vector<T> values;

  int64_t nnz() const { return static_cast<int64_t>(values.size()); }
  CsrView<T> view() const { return {rows, cols, nnz(), row_ptr.data(), col_idx.data(), values.data()}; }
};

// Any value that an entry can have; float: finite.
template <class T>
T random_value(Random& random) {
  if constexpr (std::is_same_v<T, float>) {
    return random.number();
  } else {
    return static_cast<T>(random.integer(std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  }
}

template <class T>
Csr<T> random_csr(Random& random, int64_t rows, int64_t cols, Fill fill) {
  Csr<T> csr;
  csr.rows = rows;
  csr.cols = cols;
  csr.row_ptr.push_back(0);
  const bool has_single = fill == Fill::kSingle && rows > 0 && cols > 0;
  const int64_t single = has_single ? random.integer(0, rows * cols - 1) : -1;
  for (int64_t n = 0; n < rows; ++n) {
    double density = fill == Fill::kTenth ? 0.1 : fill == Fill::kHalf ? 0.5 : fill == Fill::kFull ? 1.0 : 0.0;
    if (fill == Fill::kRagged && n % 3 != 1) density = double(random.integer(0, 10)) / 10.0;
    for (int64_t k = 0; k < cols; ++k) {
      if (n * cols + k != single && !random.chance(density)) continue;
      csr.col_idx.push_back(static_cast<int32_t>(k));
      csr.values.push_back(random_value<T>(random));
    }
    csr.row_ptr.push_back(static_cast<int32_t>(csr.values.size()));
  }
  return csr;
}

// function(column, value) for the entries of row n.
template <class T, class Function>
void for_each_entry(const Csr<T>& csr, int64_t n, Function function) {
  const auto row = static_cast<size_t>(n);
  for (auto i = static_cast<size_t>(csr.row_ptr[row]); i < static_cast<size_t>(csr.row_ptr[row + 1]); ++i) {
    function(csr.col_idx[i], csr.values[i]);
  }
}

template <class T>
struct GuardedCsr {
  int64_t rows, cols;
  Buffer<int32_t> row_ptr, col_idx;
  Buffer<T> values;

  GuardedCsr(const Csr<T>& csr, Guard guard)
      : rows(csr.rows),
        cols(csr.cols),
        row_ptr(csr.row_ptr, guard),
        col_idx(csr.col_idx, guard),
        values(csr.values, guard) {}
  CsrView<T> view() const { return {rows, cols, values.size(), row_ptr.data(), col_idx.data(), values.data()}; }
};

}  // namespace sparsecore::test
