// CUDA kernels as plain functions: device pointers, sizes and a stream in; what went wrong out (null if it was
// launched). They run on the current device and own no memory. All arrays are dense and row-major.
#pragma once

#include <cstdint>

#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"

namespace sparsecore::cuda {

using Stream = void*;  // a cudaStream_t

// Most blocks of the second and third dimension of a launch.
inline constexpr int64_t kMaxGridY = 65535;
inline constexpr int64_t kMaxGridX = 0x7fffffff;

struct CsrArrays {
  int64_t rows = 0, cols = 0, nnz = 0;
  const int32_t* row_ptr = nullptr;
  const int32_t* col_idx = nullptr;
  const void* values = nullptr;
  Dtype dtype = Dtype::kFloat32;  // of values
};

struct SpmmOutput {
  void* y = nullptr;               // of the activations' dtype
  const void* residual = nullptr;  // like y, or null
  const float* bias = nullptr;     // [N], or null
  Activation activation = Activation::kNone;
};

// The contract of SpmmArgs in ops.h: layout rows takes x[columns, K] with batch 1, layout columns x[batch, K, columns].
const char* spmm_csr(const CsrArrays& weight, Layout layout, Dtype dtype, const void* x, int64_t batch, int64_t columns,
                     const SpmmOutput& out, Stream stream);

// The fragment format (pack/fragment.h) on the device.
struct FragmentArrays {
  int64_t rows = 0, cols = 0;
  int value_bits = 16;
  int stage_bytes = 0;                // of the largest tile, a multiple of 16
  const int32_t* tile_ptr = nullptr;  // [num_tiles + 1]
  const uint8_t* blob = nullptr;      // 16-byte aligned
  int64_t blob_bytes = 0;
  const int32_t* block_ptr = nullptr;  // [num_blocks + 1] ranges of tiles, from split_fragment()
  const int32_t* row_block = nullptr;  // [row_tiles] first block with tiles of the row
  int64_t num_blocks = 0;
  const float* scale = nullptr;  // [N], or null
};

// Floats that spmm_fragment() needs as `partial`, and the rows of x that it multiplies with in one reading of W.
int64_t spmm_fragment_floats(const FragmentArrays& weight, int64_t M);
int64_t spmm_fragment_tokens(int64_t M);

// y[M, N] = activation(x[M, K] W^T + bias + residual), x and y float16 or bfloat16; 16-bit values of the same dtype.
const char* spmm_fragment(const FragmentArrays& weight, Dtype dtype, const void* x, int64_t M, float* partial,
                          const SpmmOutput& out, Stream stream);

// dense[N, K] float16 or bfloat16.
const char* expand_fragment(const FragmentArrays& weight, Dtype dtype, void* dense, Stream stream);

// The same in int8, with exact sums: y of any dtype, weights of 8 bits, x_scale[M] for rows of x. partial: as many
// int32.
const char* spmm_fragment_int8(const FragmentArrays& weight, Dtype dtype, const int8_t* x, const float* x_scale,
                               int64_t M, int32_t* partial, const SpmmOutput& out, Stream stream);

// Dense int8 on the device.
struct Int8Arrays {
  int64_t rows = 0, cols = 0;
  const int8_t* values = nullptr;  // [N, K]
  const float* scale = nullptr;    // [N]
};

// y[M, N] = activation(x_scale[m] scale[n] (x[M, K] W^T) + bias + residual) with exact sums; y of any dtype.
const char* linear_int8(const Int8Arrays& weight, Dtype dtype, const int8_t* x, const float* x_scale, int64_t M,
                        const SpmmOutput& out, Stream stream);

// The delta format (pack/delta.h) on the device.
struct DeltaArrays {
  int64_t rows = 0, cols = 0;
  const int32_t* quad_ptr = nullptr;  // [panels * rows + 1]
  const uint8_t* codes = nullptr;     // [4 * quads], 4-byte aligned
  const void* values = nullptr;       // [4 * quads] of 16 bits, 8-byte aligned, or int8, 4-byte aligned
  int64_t quads = 0;
  const int32_t* block_ptr = nullptr;  // [num_blocks + 1] ranges of units, from split_delta()
  int64_t num_blocks = 0;
  const float* scale = nullptr;  // [N] of int8 values; null for 16 bits
};

// Floats that spmm_delta() needs as `partial`.
int64_t spmm_delta_floats(const DeltaArrays& weight, int64_t M);

// As spmm_fragment() and expand_fragment().
const char* spmm_delta(const DeltaArrays& weight, Dtype dtype, const void* x, int64_t M, float* partial,
                       const SpmmOutput& out, Stream stream);
const char* expand_delta(const DeltaArrays& weight, Dtype dtype, void* dense, Stream stream);

}  // namespace sparsecore::cuda
