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

// The output of int8 products: float32, float16, bfloat16, or int8 = clamp(round(y * inverse_scale) + zero_point).
struct Int8Output : SpmmOutput {
  Dtype dtype = Dtype::kFloat32;  // of y unless it is int8
  bool is_int8 = false;
  float inverse_scale = 1.0f;
  int32_t zero_point = 0;
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

// int8 activations [M, K]: an integer stands for scale * (integer - zero_point).
struct Int8Activations {
  int64_t M = 0;
  const int8_t* x = nullptr;
  const float* scales = nullptr;  // [M], or null
  float scale = 1.0f;             // of all rows, without scales
  int32_t zero_point = 0;
  const int32_t* weight_sum = nullptr;  // [N] of the rows of W; read with a zero point alone
};

// y = activation(x_scale[m] scale[n] (x W^T - zero_point weight_sum[n]) + bias + residual) with weights of 8 bits and
// exact sums. partial: as many int32 as spmm_fragment_floats().
const char* spmm_fragment_int8(const FragmentArrays& weight, const Int8Activations& x, int32_t* partial,
                               const Int8Output& out, Stream stream);

// Dense int8 on the device.
struct Int8Arrays {
  int64_t rows = 0, cols = 0;
  const int8_t* values = nullptr;  // [N, K]
  const float* scale = nullptr;    // [N]
};

// As spmm_fragment_int8().
const char* linear_int8(const Int8Arrays& weight, const Int8Activations& x, const Int8Output& out, Stream stream);

// Float activations to int8, as QuantizeArgs in ops.h says it of an image, which here is a row.
struct QuantizeRows {
  int64_t M = 0, K = 0;
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;                 // [M, K]
  const float* channel_inverse = nullptr;  // [K], or null: x is multiplied with it first
  bool is_dynamic = true;                  // each row by its own maximum
  float scale = 1.0f;                      // else of all rows
  int32_t zero_point = 0;
  int8_t* out = nullptr;    // [M, K]
  float* scales = nullptr;  // [M], written if dynamic
};
const char* quantize_rows(const QuantizeRows& args, Stream stream);

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
