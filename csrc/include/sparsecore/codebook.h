// Weights as codes of a small codebook with relative positions, and their product with dense activations.
#pragma once

#include <cstdint>
#include <span>

#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"
#include "sparsecore/views.h"

namespace sparsecore {

// weight[N, K] by columns, as in EIE (Han et al., ISCA 2016): position k * N + n is entry (n, k). Entry i is
// codebook[code i], and lies gap i positions behind the one after entry i - 1. Where a gap does not fit in gap_bits,
// there are fillers: entries with the largest gap whose value is zero, which contribute nothing.
//
//   [ 5 . ]     position  0 1 2 3 4 5      codebook 0 4 5
//   [ . 4 ]     value     5 . . . 4 .      codes    2 0 1
//   [ . . ]     entry     0   1   2        gaps     0 1 1      gap_bits 1: entry 1 is a filler
//
// A column is cut into blocks of block_rows rows; segment k * num_blocks + b is block b of column k: entries
// segment_ptr[s] .. segment_ptr[s + 1]. segment_zeros[s]: how many of the zeros that the first one's gap counts lie
// before the segment.
struct CodebookView {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K
  int64_t nnz = 0;   // entries, fillers included
  int64_t bits = 1;  // of a code, 1 .. 8
  int64_t gap_bits = 1;
  int64_t block_rows = 1;
  const float* codebook = nullptr;         // [2^bits], finite
  const uint8_t* codes = nullptr;          // nnz fields of `bits` bits, lowest bit first, then kCodebookSlack bytes
  const uint8_t* gaps = nullptr;           // the same with gap_bits
  const int32_t* segment_ptr = nullptr;    // [num_segments + 1]
  const uint8_t* segment_zeros = nullptr;  // [num_segments]

  int64_t num_blocks() const { return (rows + block_rows - 1) / block_rows; }
  int64_t num_segments() const { return num_blocks() * cols; }
};
// Bytes behind the fields, so that 8 can be read from wherever one begins.
inline constexpr int64_t kCodebookSlack = 8;
inline constexpr int64_t kMaxCodebookBits = 8;
// Sums of a block are kept beside the caches' other load: 1024 rows of 16 columns are 64 KB.
inline constexpr int64_t kMaxCodebookBlockRows = 1024;

// What is wrong with the segments of blocks [blocks.begin, blocks.end), or null if kernels can run on them: segment_ptr
// rises inside [0, nnz]. Codes and gaps need no check: any code is in the codebook, and a segment ends where its gaps
// leave its block.
const char* validate_codebook(const CodebookView& weight, Range blocks);

// Multiplications that a row x[K] takes: the entries, but for fillers, of the columns where x is not zero.
int64_t count_codebook_multiplies(const CodebookView& weight, const float* x);

// y = activation(W x + bias + residual) as in spmm, Layout::kRows only; the rows argument of run counts blocks. A
// column whose activations are zero in all rows of a tile is not read: finite weights would add nothing.
using SpmmCodebookArgs = SpmmOf<CodebookView>;
std::span<const Kernel<SpmmCodebookArgs>> spmm_codebook_kernels();

}  // namespace sparsecore
