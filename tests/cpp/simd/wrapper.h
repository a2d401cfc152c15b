// The vector wrappers of csrc/simd, and what is built on them alone, as plain functions: one table per instruction
// set, so that tests run each. A dtype is of what is read or written; the other side is float32.
#pragma once

#include <cstdint>

#include "sparsecore/isa.h"
#include "sparsecore/views.h"

namespace sparsecore::test {

struct Wrapper {
  Isa isa;
  int lanes;
  void (*load)(Dtype dtype, const void* from, float* to);  // one vector
  void (*load_n)(Dtype dtype, const void* from, int n, float* to);
  void (*store)(Dtype dtype, const float* from, void* to);
  void (*store_n)(Dtype dtype, const float* from, void* to, int n);
  void (*even)(const float* a, const float* b, float* to);
  void (*odd)(const float* a, const float* b, float* to);
  // Packed numbers on the lanes of `bits`, times b, plus c; and how many bits are set.
  void (*expand_fma)(uint32_t bits, const float* packed, const float* b, const float* c, float* to);
  int64_t (*count)(uint32_t bits);
  // Numbers of a table of one vector by the low bits of each index, after these bits were shifted out `shifts` times;
  // and how many bits: 0 where there is no such instruction.
  void (*lookup)(const float* table, const uint32_t* index, int shifts, float* to);
  int table_bits;
  // csrc/kernels/copy.h
  void (*copy_in)(Dtype dtype, const void* from, float* to, int64_t n);
  void (*copy_out)(Dtype dtype, const float* from, void* to, int64_t n);
  void (*copy_strided)(Dtype dtype, const void* from, int64_t stride, float* to, int64_t n);
  void (*transpose_in)(Dtype dtype, const void* from, int64_t ld_from, int64_t rows, int64_t cols, float* to,
                       int64_t ld_to);
  void (*transpose_out)(Dtype dtype, const float* from, int64_t ld_from, int64_t rows, int64_t cols, void* to,
                        int64_t ld_to);
};

Wrapper wrapper_avx512();
Wrapper wrapper_avx2();
Wrapper wrapper_neon();
Wrapper wrapper_scalar();

}  // namespace sparsecore::test
