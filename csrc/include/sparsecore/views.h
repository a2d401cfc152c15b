// Views: pointers plus sizes. They never own and never validate; see pack.h for validation.
#pragma once

#include <cstdint>

namespace sparsecore {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// weight[N, K] in CSR order; col_idx is strictly ascending inside a row.
//
//   [ 5 . 7 ]   row_ptr 0 2 2 3      rows + 1 entries, row_ptr[n] .. row_ptr[n + 1] are row n
//   [ . . . ]   col_idx 0 2 1
//   [ . 9 . ]   values  5 7 9
template <class T>
struct CsrView {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int64_t nnz = 0;
  const int32_t* row_ptr = nullptr;
  const int32_t* col_idx = nullptr;
  const T* values = nullptr;
};

}  // namespace sparsecore
