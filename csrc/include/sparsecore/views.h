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

// A CSR weight as straight-line machine code: what is stored, and where, is in the instructions. Made by
// JitProgram::generate() alone.
//
// The code of segment (block, panel) adds block_rows rows x panel_cols columns of the weight times kLanes columns of
// activations to sums that stay in registers meanwhile:
//
//   load x1                  column 1, which rows 0 and 2 of the block have
//   sum0 += values[0] * x1
//   sum2 += values[1] * x1
//   load x4 ...
//
// The sums of a row lie kSumsStride floats after those of the row before: there is room for those of other columns.
// Code of the first panel starts from zero, that of others from `sums`; all of it leaves its results there, except for
// 1x1 convolutions, whose last panel finishes them and writes them where `outputs` says. Segments lie in memory in the
// order in which kernels run them: by group of group_blocks blocks, in it by panel, in it by block.
//
// x has two forms: [panel_cols, kLanes] floats or, for a convolution (kernel_h > 0, panels of whole channels), a
// JitTaps: kLanes pixels of tap (kh, kw) of the panel's channel c start at rows[kh] + columns[kw] + c * channel, in
// bytes, wherever the kernel chose to put its input.
struct JitTaps {
  static constexpr int64_t kMaxRows = 10, kMaxColumns = 64;  // of a filter
  int64_t channel = 0;
  const uint8_t* rows[kMaxRows] = {};
  int64_t columns[kMaxColumns] = {};
};

// Row n of the block, finished: max(least, min(most, sums + residual[n] + bias[n])), kLanes of them, to y[n]. NaN stays
// NaN. Where nothing is added it is -0, which changes no number.
struct JitOutputs {
  const uint8_t* residual = nullptr;
  int64_t residual_stride = 0;  // bytes
  uint8_t* y = nullptr;
  int64_t y_stride = 0;  // bytes
  const float* bias = nullptr;
  float least = -__builtin_inff(), most = __builtin_inff();
};

struct JitView {
  static constexpr int64_t kLanes = 16;
  using Code = void (*)(const float* values, const void* x, float* sums, const JitOutputs* outputs);
  static constexpr int64_t kSumsStride = 272;  // 17 cache lines: an odd number, so that rows are in different sets
  int64_t rows = 0;                            // N
  int64_t cols = 0;                            // K
  int64_t nnz = 0;
  int64_t kernel_h = 0, kernel_w = 0;  // of a convolution
  int64_t block_rows = 0;
  int64_t panel_cols = 0;
  int64_t group_blocks = 1;
  const uint8_t* code = nullptr;
  const int64_t* code_ptr = nullptr;   // [num_segments + 1] where each segment's code starts
  const int32_t* entry_ptr = nullptr;  // [num_segments + 1] first value of each segment
  const int32_t* block_ptr = nullptr;  // [num_blocks + 1] running sum of each block's entries
  const float* values = nullptr;       // [nnz]

  bool writes_outputs() const { return kernel_h == 1 && kernel_w == 1; }
  int64_t num_blocks() const { return block_rows == 0 ? 0 : (rows + block_rows - 1) / block_rows; }
  int64_t num_panels() const { return cols == 0 ? 1 : (cols + panel_cols - 1) / panel_cols; }
  int64_t num_segments() const { return num_blocks() * num_panels(); }
  Range group_of(int64_t block) const {
    const int64_t begin = block / group_blocks * group_blocks, end = begin + group_blocks;
    return {begin, end < num_blocks() ? end : num_blocks()};
  }
  Range rows_of(Range blocks) const {
    const int64_t end = blocks.end * block_rows;
    return {blocks.begin * block_rows, end < rows ? end : rows};
  }
  // Number of the segment (group.begin, panel); the group's other blocks follow.
  int64_t segment_of(Range group, int64_t panel) const { return group.begin * num_panels() + panel * group.size(); }
};

// Integer weights[N, K] for kernels whose vector lanes are `lanes` output rows (a block of rows), each with a quad of
// 4 values in 4 neighbouring bytes, as integer dot products add them. K is cut into `segments` equal pieces, the
// columns that lie side by side in memory: rows of a filter, or all of K. Rows are filled up with zeros to whole
// blocks. Private to the int8 kernels, whose numbers of lanes differ.
struct Int8Blocks {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K, a multiple of segments
  int64_t segments = 1;
  int64_t lanes = 0;

  int64_t num_blocks() const { return (rows + lanes - 1) / lanes; }
  int64_t segment_cols() const { return segments == 0 ? 0 : cols / segments; }
  int64_t quads() const { return (segment_cols() + 3) / 4; }  // of a segment
  int64_t quad_bytes() const { return 4 * lanes; }            // of all rows of a block
  int64_t block_bytes() const { return segments * quads() * quad_bytes(); }
};

// Dense: all quads in order.
struct Int8View : Int8Blocks {
  const int8_t* values = nullptr;  // [num_blocks, segments, quads, lanes, 4]
};

// The same without the zeros: a bit per byte of a quad vector, bit 4 lane + i for its byte i, and the bytes of the set
// bits in order.
//
//   lanes 2, one quad     values [[5 0 0 7] [0 0 1 0]]      masks 0b01001001      values 5 7 1
struct BitmapInt8View : Int8Blocks {
  int64_t nnz = 0;
  const uint8_t* masks = nullptr;      // [num_blocks, segments, quads, lanes / 2], little endian
  const int32_t* value_ptr = nullptr;  // [num_blocks + 1] first value of each block
  const int8_t* values = nullptr;      // [nnz]
};

// Table lookup: a group is `table` neighbouring columns of a segment, whose activations a byte shuffle looks up 4 lanes
// at once. A step holds 4 slots of (column in the group, value) for each row of a block; a value of 0 fills up. An
// entry is the steps of a block in one group; entries of a block come with few steps first, so that loop ends predict.
//
//   lanes 2, table 8, one entry   row 0: columns 1 5      slots 1 5 0 0  3 0 0 0   the columns, rows side by side
//   of one step                   row 1: column 3               9 8 0 0  7 0 0 0   the values
//
// All rows of a block take the steps of the fullest, so rows may be stored in another order: windows of
// kLookupWindow rows, in each of which row r of the weight is row row_place[r] of the stored ones.
inline constexpr int64_t kLookupWindow = 128;
inline constexpr int64_t kMaxGroupCols = 2048;
struct LookupView : Int8Blocks {
  int64_t table = 0;
  bool has_safe_pairs = false;  // 255 * (sum of the values of slots 2 i and 2 i + 1 of a row) fits in int16
  int64_t num_entries = 0;
  int64_t num_steps = 0;
  const int32_t* entry_ptr = nullptr;     // [num_blocks + 1] first entry of each block
  const int32_t* step_ptr = nullptr;      // [num_blocks + 1] first step of each block
  const uint16_t* entry_group = nullptr;  // [num_entries] group: segment * groups() + group of the segment
  const uint8_t* entry_steps = nullptr;   // [num_entries] 1 .. kMaxLookupSteps, never falling inside a block
  const uint8_t* slots = nullptr;         // [num_steps, 2, lanes, 4] columns, then values (int8)
  const uint8_t* row_place = nullptr;     // [rows] less than kLookupWindow, or null: rows are stored in order

  int64_t window_blocks() const { return kLookupWindow / lanes; }
  int64_t groups() const { return (segment_cols() + table - 1) / table; }  // of a segment
};

// Table lookup of 4-bit values with a scale per row and group of `group_cols` columns; segments is 1. A group has the
// tables of `table` columns that lie in it, a table an entry if any row of the block has a value in it, and an entry
// steps of 4 slots for each row of the block, as above. A slot is one byte: the value, -8 to 7, in its high half, and
// in its low half where it is:
//
//   table 16       the column in the table
//   larger ones    the distance to the slot before, less 1; the first slot's before is column -1
//
// Values of 0 fill up: at the end of a row, and between two values that are more than 16 columns apart. Entries of a
// group come with few steps first.
//
//   lanes 2, table 64, one entry of two steps       row 0: columns 1 5 40, values 3 -1 5     row 1: column 3, value 2
//   slots, in hex     first step   31 f3 0f 0f                                               23 00 00 00
//                     second       52 00 00 00                                               00 00 00 00
struct LookupInt4View : Int8Blocks {
  int64_t table = 0;
  int64_t group_cols = 0;  // a multiple of table, at most kMaxGroupCols
  int64_t num_entries = 0;
  int64_t num_steps = 0;
  const int32_t* entry_ptr = nullptr;    // [num_blocks * groups + 1] first entry of each block in each group
  const int32_t* step_ptr = nullptr;     // [num_blocks + 1] first step of each block
  const uint8_t* entry_table = nullptr;  // [num_entries] table of the group
  const uint8_t* entry_steps = nullptr;  // [num_entries] from 1 on
  const uint8_t* slots = nullptr;        // [num_steps, lanes, 4]
  const float* group_scale = nullptr;    // [num_blocks, groups, lanes]
  const int16_t* group_sum = nullptr;    // [num_blocks, groups, lanes] sums of the values
  const uint8_t* row_place = nullptr;    // as above

  int64_t window_blocks() const { return kLookupWindow / lanes; }
  int64_t groups() const { return (cols + group_cols - 1) / group_cols; }
  int64_t tables() const { return (cols + table - 1) / table; }
  bool has_distances() const { return table > 16; }
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

// Weights whose rows have one magnitude per sign: a bit for each position and plane. Rows come in blocks of 16, columns
// in words of 32. Private to its kernels, which accept any bits; those of positions past N or K have no effect.
//
//   words  uint32 [num_blocks, num_words, planes, 16]    bit i of words[b][w][p][r]: row 16 b + r, column 32 w + i
//   scale  float32 [planes, 16 num_blocks]
//
//   one plane (binary)      weight = bit ? -scale[0][n] : scale[0][n]
//   two planes (ternary)    weight = scale[0][n] where plane 0 has a bit + scale[1][n] where plane 1 has one
inline constexpr int64_t kPlaneBlockRows = 16;
inline constexpr int64_t kPlaneWordBits = 32;
struct PlanesView {
  int64_t rows = 0;    // N
  int64_t cols = 0;    // K
  int64_t planes = 1;  // 1 or 2
  const uint32_t* words = nullptr;
  const float* scale = nullptr;  // finite

  int64_t num_blocks() const { return (rows + kPlaneBlockRows - 1) / kPlaneBlockRows; }
  int64_t num_words() const { return (cols + kPlaneWordBits - 1) / kPlaneWordBits; }
};

}  // namespace sparsecore
