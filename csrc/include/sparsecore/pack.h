// Dense + mask -> CSR and back, and the only check of untrusted index arrays.
#pragma once

#include <cstdint>

#include "sparsecore/views.h"

namespace sparsecore {

// What is wrong with rows [rows.begin, rows.end) of a CSR matrix, or null if kernels can run on them: row_ptr
// monotone and inside [0, nnz], col_idx strictly ascending inside a row and inside [0, cols).
// About one comparison per entry, so the torch binding affords it on every call.
const char* validate_csr(int64_t cols, int64_t nnz, const int32_t* row_ptr, const int32_t* col_idx, Range rows);

// Entries to keep in rows of a dense weight[N, K]: where mask is true, or without a mask every value that is
// not zero (NaN is kept). T: float, uint16_t (the bits of float16 or bfloat16), int8_t.
template <class T>
void count_kept(const T* weight, const bool* mask, int64_t cols, Range rows, int64_t* counts);

// Writes the kept entries of those rows; row_ptr is the running sum of count_kept.
template <class T>
void fill_csr(const T* weight, const bool* mask, int64_t cols, Range rows, const int32_t* row_ptr, int32_t* col_idx,
              T* values);

// The exact inverse; missing entries become zero.
template <class T>
void unpack_csr(const CsrView<T>& weight, Range rows, T* dense);

// The transposed matrix [K, N] by counting columns: row_ptr [K + 1], col_idx and values [nnz], all owned by the caller.
template <class T>
void transpose_csr(const CsrView<T>& weight, int32_t* row_ptr, int32_t* col_idx, T* values);

}  // namespace sparsecore
