// Walking the entries of one segment of a codebook weight: what kernels and the count of multiplications share.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/target.h"
#include "sparsecore/codebook.h"

namespace sparsecore {
namespace {

// Fields from number i on in the low bits: at least 57 bits, since a field begins inside the first byte.
SPARSECORE_INLINE uint64_t load_fields(const uint8_t* fields, int64_t i, int64_t bits) {
  uint64_t window;
  std::memcpy(&window, fields + i * bits / 8, sizeof(window));  // little endian, as all that we build for
  return window >> (i * bits % 8);
}

// Calls visit(row inside the block, value) for the entries of segment (block, k) that are no fillers.
template <class Visit>
SPARSECORE_INLINE void for_each_entry_of_segment(const CodebookView& weight, int64_t block, int64_t k, Visit visit) {
  const int64_t segment = k * weight.num_blocks() + block;
  const int64_t rest = weight.rows - block * weight.block_rows;
  const int64_t num_rows = rest < weight.block_rows ? rest : weight.block_rows;
  const int64_t bits = weight.bits, gap_bits = weight.gap_bits;
  const uint64_t code_mask = (uint64_t(1) << bits) - 1, gap_mask = (uint64_t(1) << gap_bits) - 1;
  const int64_t fields_per_load = 57 / (bits > gap_bits ? bits : gap_bits);
  const int64_t end = weight.segment_ptr[segment + 1];
  int64_t row = -int64_t(weight.segment_zeros[segment]);
  for (int64_t i = weight.segment_ptr[segment]; i < end; i += fields_per_load) {
    uint64_t codes = load_fields(weight.codes, i, bits), gaps = load_fields(weight.gaps, i, gap_bits);
    const int64_t count = end - i < fields_per_load ? end - i : fields_per_load;
    for (int64_t j = 0; j < count; ++j) {
      row += int64_t(gaps & gap_mask);
      if (uint64_t(row) >= uint64_t(num_rows)) return;  // only if the gaps are damaged
      const float value = weight.codebook[codes & code_mask];
      if (value != 0.0f) visit(row, value);
      ++row;
      codes >>= bits;
      gaps >>= gap_bits;
    }
  }
}

}  // namespace
}  // namespace sparsecore
