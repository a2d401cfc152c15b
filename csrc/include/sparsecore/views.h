// Views: pointers plus sizes. They never own and never validate; see pack.h for validation.
#pragma once

#include <cstdint>

namespace sparsecore {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// What activations are stored as; kernels compute in float32.
enum class Dtype { kFloat32, kBFloat16, kFloat16 };
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
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

// CSR of block rows: entries are columns of block_rows neighbouring rows that are all stored.
//
//   [ 5 . 7 ]   block_rows 2      entry i is values[2 i], values[2 i + 1]
//   [ 1 . 0 ]   row_ptr 0 2
//               col_idx 0 2
//               values  5 1 7 0
template <class T>
struct BlockCsrView {
  int64_t rows = 0;  // N, a multiple of block_rows
  int64_t cols = 0;  // K
  int64_t nnz = 0;   // entries: columns of a block, zeros in it included once each
  int64_t block_rows = 1;
  const int32_t* row_ptr = nullptr;  // [N / block_rows + 1]
  const int32_t* col_idx = nullptr;  // [nnz]
  const T* values = nullptr;         // [nnz, block_rows]

  int64_t num_blocks() const { return rows / block_rows; }
};

// A CSR weight cut into blocks of block_rows rows and panels of panel_cols columns, so that the activations of
// one panel stay in the first-level cache while all rows run over them. Private to the panel kernels.
//
// A segment is one block in one panel; segment (b, p) is number p * num_blocks + b. It is a list of runs, the entries
// of one row, longest first so that the end of the inner loop predicts. In the first and the last panel every row
// has its run, if need be empty; elsewhere empty runs are left out.
//
//   block_rows 2, panel_cols 2    segment  runs (row: columns)      run_row run_length  columns
//   [ 5 . 7 ]                     (0, 0)   1: 0 1    0: 0           1 0     2 1         0 1 0
//   [ 1 2 . ]                     (0, 1)   0: 0      1:             0 1     1 0         0
template <class T>
struct PanelView {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int64_t nnz = 0;
  int64_t num_runs = 0;
  int64_t block_rows = 0;               // at most 256
  int64_t panel_cols = 0;               // at most 255
  const int32_t* run_ptr = nullptr;     // [num_segments + 1] first run of each segment
  const int32_t* entry_ptr = nullptr;   // [num_segments + 1] first entry of each segment
  const uint8_t* run_row = nullptr;     // [num_runs] row inside the block
  const uint8_t* run_length = nullptr;  // [num_runs] entries
  const uint8_t* panel_col = nullptr;   // [nnz] column inside the panel
  const T* values = nullptr;            // [nnz]

  int64_t num_blocks() const { return (rows + block_rows - 1) / block_rows; }
  int64_t num_panels() const { return cols == 0 ? 1 : (cols + panel_cols - 1) / panel_cols; }
  int64_t num_segments() const { return num_blocks() * num_panels(); }
};

// One bit per position and the stored values: the smallest form of a float weight at 30 to 90% zeros. Rows come in
// blocks of 16; where K columns and a density d are stored, a weight costs 1/8 + d * (bytes of a value) bytes.
// Private to the bitmap kernels.
//
//   block_ptr  int32 [num_blocks + 1]       block b has the values block_ptr[b] .. block_ptr[b + 1]
//   masks      uint16 [num_blocks, K]       bit r of masks[b * K + k]: row 16 b + r has an entry in column k. Bits of
//                                           rows past N are 0
//   values     [nnz + kBitmapSlack]         of a dtype; the entries by block, in it by column, in that by row, then
//                                           zeros, so that 16 numbers can be loaded from wherever the next entry is
//
//   [ 5 . 7 ]   block_ptr 0 4
//   [ 1 2 . ]   masks     0b11 0b10 0b01
//               values    5 1  2    7   0 0 ...
inline constexpr int64_t kBitmapBlockRows = 16;
inline constexpr int64_t kBitmapSlack = 16;
struct BitmapView {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int64_t nnz = 0;
  const int32_t* block_ptr = nullptr;
  const uint16_t* masks = nullptr;
  Dtype dtype = Dtype::kFloat32;
  const void* values = nullptr;

  int64_t num_blocks() const { return (rows + kBitmapBlockRows - 1) / kBitmapBlockRows; }
};

}  // namespace sparsecore
