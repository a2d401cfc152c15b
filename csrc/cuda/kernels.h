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

}  // namespace sparsecore::cuda
