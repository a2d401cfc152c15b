// Dense + mask -> CSR -> panels or bitmaps and back, and the only check of untrusted index arrays.
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

// ptr[1 .. size] hold counts; makes them the running sum that starts at ptr[0] = 0, and returns the total. If that is
// 2^31 or more, ptr is of no use.
int64_t running_sum(int32_t* ptr, int64_t size);

// Blocks of block_rows (at most 8) rows of a CSR weight, in two passes: the columns that any row of a block has,
// counted to block_ptr[block + 1]; then, after running_sum(), those columns with the values of all its rows, zero where
// a row has none.
inline constexpr int64_t kMaxBlockCsrRows = 8;
template <class T>
void count_block_csr(const CsrView<T>& weight, int64_t block_rows, Range blocks, int32_t* block_ptr);
template <class T>
void fill_block_csr(const CsrView<T>& weight, int64_t block_rows, Range blocks, const int32_t* block_ptr,
                    int32_t* col_idx, T* values);

// CSR to panels in two passes over ranges of blocks, which are independent of each other: count_panel(), running_sum()
// of both arrays, then fill_panel(). The order of a row's entries stays that of CSR.
// Linear in nnz + rows * panels. weight must be valid; block_rows in 1 .. 256, panel_cols in 1 .. 255.
inline constexpr int64_t kMaxBlockRows = 256;
inline constexpr int64_t kMaxPanelCols = 255;

// Runs and entries of the blocks' segments, to run_ptr[segment + 1] and entry_ptr[segment + 1].
template <class T>
void count_panel(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Range blocks, int32_t* run_ptr,
                 int32_t* entry_ptr);

// The arrays of a PanelView; the first two are complete before the others are written.
template <class T>
struct PanelArrays {
  const int32_t* run_ptr;
  const int32_t* entry_ptr;
  uint8_t* run_row;
  uint8_t* run_length;
  uint8_t* panel_col;
  T* values;
};
template <class T>
void fill_panel(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Range blocks,
                const PanelArrays<T>& out);

// The exact inverse, again in two passes over ranges of blocks with running_sum() of row_ptr [rows + 1] between them:
// entries of the blocks' rows to row_ptr[n + 1], then col_idx and values [nnz]. weight must be valid.
template <class T>
void count_unpacked(const PanelView<T>& weight, Range blocks, int32_t* row_ptr);
template <class T>
void unpack_panel(const PanelView<T>& weight, Range blocks, const int32_t* row_ptr, int32_t* col_idx, T* values);

// What is wrong with the segments of blocks [blocks.begin, blocks.end) in all panels, or null if kernels can run.
template <class T>
const char* validate_panel(const PanelView<T>& weight, Range blocks);

// Dense int8 [N, K] to the lookup format in two passes over ranges of blocks: entries and steps of the blocks counted
// to entry_ptr[block + 1] and step_ptr[block + 1]; then, after running_sum() of both, the rest. shape gives rows,
// cols, segments, lanes, table and has_safe_pairs; zeros are left out. Groups with many non-zeros become several
// entries. Rows are stored as they come: for a row_place the caller puts them in that order first.
inline constexpr int64_t kMaxLookupSteps = 6;
struct LookupArrays {
  const int32_t* entry_ptr;
  const int32_t* step_ptr;
  uint16_t* entry_group;
  uint8_t* entry_steps;
  uint8_t* slots;
};
void count_lookup(const int8_t* weight, const LookupView& shape, Range blocks, int32_t* entry_ptr, int32_t* step_ptr);
void fill_lookup(const int8_t* weight, const LookupView& shape, Range blocks, const LookupArrays& out);

// The exact inverse: rows of those blocks of dense int8 [N, K], in the order they are stored in. weight must be valid.
void unpack_lookup(const LookupView& weight, Range blocks, int8_t* dense);

// What is wrong with those blocks, or null if kernels can run: pointers monotone and inside the arrays, as many steps
// as the entries say, groups inside the weight. Columns of slots need no check: any byte looks up an activation of the
// table, or 0.
const char* validate_lookup(const LookupView& weight, Range blocks);

// The same for values of -8 to 7 with group scales: entries of the blocks in each group counted to
// entry_ptr[block * groups + group + 1] and steps to step_ptr[block + 1]. shape gives rows, cols, lanes, table and
// group_cols. group_scale and group_sum are the caller's.
struct LookupInt4Arrays {
  const int32_t* entry_ptr;
  const int32_t* step_ptr;
  uint8_t* entry_table;
  uint8_t* entry_steps;
  uint8_t* slots;
};
void count_lookup_int4(const int8_t* weight, const LookupInt4View& shape, Range blocks, int32_t* entry_ptr,
                       int32_t* step_ptr);
void fill_lookup_int4(const int8_t* weight, const LookupInt4View& shape, Range blocks, const LookupInt4Arrays& out);
void unpack_lookup_int4(const LookupInt4View& weight, Range blocks, int8_t* dense);
const char* validate_lookup_int4(const LookupInt4View& weight, Range blocks);

// CSR to bitmap in one pass over ranges of blocks, which are independent of each other: writes block_ptr[block + 1],
// masks and values of the blocks. block_ptr[0] = 0 and the zeros behind the last value are the caller's. weight must be
// valid. T: float, or uint16_t (the bits of float16 or bfloat16).
template <class T>
struct BitmapArrays {
  int32_t* block_ptr;
  uint16_t* masks;
  T* values;
};
template <class T>
void fill_bitmap(const CsrView<T>& weight, Range blocks, const BitmapArrays<T>& out);

// The exact inverse, in two passes over ranges of blocks with running_sum() of row_ptr [rows + 1] between them, as for
// panels. weight must be valid; T is of the size of its dtype.
void count_unpacked(const BitmapView& weight, Range blocks, int32_t* row_ptr);
template <class T>
void unpack_bitmap(const BitmapView& weight, Range blocks, const int32_t* row_ptr, int32_t* col_idx, T* values);

// What is wrong with blocks [blocks.begin, blocks.end), or null if kernels can run on them: the bits of a block's masks
// are as many as its values, which lie inside the array.
const char* validate_bitmap(const BitmapView& weight, Range blocks);

}  // namespace sparsecore
