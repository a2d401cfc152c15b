// CSR to the delta format and back, for the CUDA kernel, and the only check of untrusted arrays of it.
#pragma once

#include <cstdint>

#include "pack/delta_layout.h"
#include "sparsecore/views.h"

namespace sparsecore {

struct DeltaShape {
  int64_t rows = 0;  // N
  int64_t cols = 0;  // K

  int64_t panels() const { return delta_panels(cols); }
  int64_t units() const { return panels() * rows; }
};

// T: uint16_t (float16 or bfloat16) or int8_t.
template <class T>
struct DeltaView : DeltaShape {
  const int32_t* quad_ptr = nullptr;  // [units + 1] first quad of each row of each panel
  const uint8_t* codes = nullptr;     // [4 * quads]
  const T* values = nullptr;          // [4 * quads]
  int64_t quads = 0;
};

// Packing in two passes over ranges of rows, which are independent of each other: quads to quad_ptr[unit + 1]; then,
// after running_sum(), codes and values. weight must be valid.
template <class T>
void count_delta(const CsrView<T>& weight, const DeltaShape& shape, Range rows, int32_t* quad_ptr);
template <class T>
void fill_delta(const CsrView<T>& weight, const DeltaShape& shape, Range rows, const int32_t* quad_ptr, uint8_t* codes,
                T* values);

// What is wrong with rows, or null if they are exactly what fill_delta() could have written: quads rise inside the
// arrays, columns rise inside a panel, no value without an entry, no more codes than it takes.
template <class T>
const char* validate_delta(const DeltaView<T>& weight, Range rows);

// The exact inverse, in two passes with running_sum() of row_ptr between them. weight must be valid.
template <class T>
void count_unpacked_delta(const DeltaView<T>& weight, Range rows, int32_t* row_ptr);
template <class T>
void unpack_delta(const DeltaView<T>& weight, Range rows, const int32_t* row_ptr, int32_t* col_idx, T* values);

// block_ptr[num_blocks + 1]: units in order, cut into num_blocks ranges of nearly equal work.
void split_delta(const int32_t* quad_ptr, int64_t units, int64_t num_blocks, int32_t* block_ptr);

}  // namespace sparsecore
