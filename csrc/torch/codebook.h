// Codebook weights as torch brings them.
#pragma once

#include <vector>

#include "sparsecore/codebook.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// Tensors and sizes of the codebook format as Python's PackedCodebookWeight holds them, in this order: codebook
// float32, codes and gaps uint8, segment_ptr int32, segment_zeros uint8; N, K, entries, bits, gap_bits, block_rows.
CodebookView codebook_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

// Blocks of rows in the codebook format. Entries are spread over the blocks of a column: each block costs the same.
struct CodebookRows {
  static constexpr const char* kFormat = "codebook";
  CodebookView weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = nullptr;
  const char* validate(Range blocks) const { return validate_codebook(weight, blocks); }
};

}  // namespace sparsecore::torch_binding
