#include "sparsecore/codebook.h"

#include "kernels/spmm/codebook_segment.h"

namespace sparsecore {

const char* validate_codebook(const CodebookView& weight, Range blocks) {
  const int64_t num_blocks = weight.num_blocks();
  for (int64_t k = 0; k < weight.cols; ++k) {
    for (int64_t segment = k * num_blocks + blocks.begin; segment < k * num_blocks + blocks.end; ++segment) {
      const int32_t begin = weight.segment_ptr[segment], end = weight.segment_ptr[segment + 1];
      if (begin < 0 || end < begin || end > weight.nnz) return "segment_ptr must rise from 0 to the number of entries";
    }
  }
  return nullptr;
}

int64_t count_codebook_multiplies(const CodebookView& weight, const float* x) {
  int64_t count = 0;
  for (int64_t k = 0; k < weight.cols; ++k) {
    if (x[k] == 0.0f) continue;
    for (int64_t block = 0; block < weight.num_blocks(); ++block) {
      for_each_entry_of_segment(weight, block, k, [&](int64_t, float) { ++count; });
    }
  }
  return count;
}

}  // namespace sparsecore
