// Contracts of the operations: formula, layouts, rounding. One table of kernels each, best first, scalar last.
//
// N output features, K reduced, M rows of activations, P columns of activations in convolution layout. All
// pointers are to dense row-major data unless a leading dimension (in elements) says otherwise. No buffer is read
// or written outside its stated size. Contents of index arrays are trusted: validate_csr() first.
#pragma once

#include <span>

#include "sparsecore/kernel.h"
#include "sparsecore/views.h"

namespace sparsecore {

// Sparse weight x dense activations, float32 sums with fused multiply-add: y = activation(W x + bias + residual).
// Only stored entries contribute: 0 * NaN of a missing entry is skipped. x, y and the residual are of one dtype; its
// numbers are widened exactly on the way in and rounded to nearest even on the way out.
enum class Layout {
  kRows,     // x[M, K], y[M, N]: linear layers
  kColumns,  // x[batch, K, P], y[batch, N, P]: 1x1 convolutions
};

template <class Weight>
struct SpmmOf {
  Weight weight;
  Layout layout = Layout::kRows;
  int64_t batch = 1;    // kRows: 1
  int64_t columns = 0;  // kRows: M; kColumns: P
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  int64_t ldx = 0;  // kRows: distance of rows of x; kColumns: of its K planes
  int64_t x_batch_stride = 0;
  void* y = nullptr;
  int64_t ldy = 0;
  int64_t y_batch_stride = 0;
  const void* residual = nullptr;  // strides of y, or null
  Epilogue epilogue;
};
using SpmmArgs = SpmmOf<CsrView<float>>;
using SpmmBlockArgs = SpmmOf<BlockCsrView<float>>;  // block_rows 4 or 8; the rows argument of run counts blocks
using SpmmPanelArgs = SpmmOf<PanelView<float>>;     // the rows argument of run counts blocks
using SpmmBitmapArgs = SpmmOf<BitmapView>;          // Layout::kRows only; the rows argument of run counts blocks
std::span<const Kernel<SpmmArgs>> spmm_kernels();
std::span<const Kernel<SpmmBlockArgs>> spmm_block_kernels();
std::span<const Kernel<SpmmPanelArgs>> spmm_panel_kernels();
std::span<const Kernel<SpmmBitmapArgs>> spmm_bitmap_kernels();

// Direct sparse convolution: x[batch, C, H, W], weight[N, C/groups * KH * KW], y and residual[batch, N, OH, OW], all
// contiguous. Numbers as in spmm. Padding contributes zeros (so 0 * inf there is NaN, as in a dense convolution).
template <class Weight>
struct Conv2dOf {
  Weight weight;
  int64_t batch = 0, channels = 0, height = 0, width = 0;
  int64_t out_height = 0, out_width = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t padding_h = 0, padding_w = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t groups = 1;
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  void* y = nullptr;
  const void* residual = nullptr;
  Epilogue epilogue;
};
using Conv2dArgs = Conv2dOf<CsrView<float>>;
using Conv2dBlockArgs = Conv2dOf<BlockCsrView<float>>;  // no block in two groups
using Conv2dPanelArgs = Conv2dOf<PanelView<float>>;     // one group; panels of whole channels; rows of run are blocks
std::span<const Kernel<Conv2dArgs>> conv2d_kernels();
std::span<const Kernel<Conv2dBlockArgs>> conv2d_block_kernels();
std::span<const Kernel<Conv2dPanelArgs>> conv2d_panel_kernels();

// Rows of float32 activations to integers, the zero point already taken off:
//   out = clamp(round_half_even(x / scale) + zero_point, -128, 127) - zero_point
// so that real = scale * out and the whole int8 range stays exact in int16. Dynamic: scale = max|x| / 127 per row,
// zero_point 0; a row of zeros (or of nothing above 127 subnormal steps) gets scale 1; a row with a NaN or infinity
// gets scale NaN, and so its outputs are NaN. Static: a NaN gives 0, infinities the ends of the range. Tiles are rows
// of x; the rows argument of run is ignored.
struct QuantizeArgs {
  const float* x = nullptr;  // [M, K]
  int64_t M = 0, K = 0, ldx = 0;
  bool is_dynamic = true;
  float static_scale = 1.0f;
  int32_t zero_point = 0;
  int16_t* out = nullptr;  // [M, ld_out], columns K .. ld_out are set to 0
  int64_t ld_out = 0;
  float* scale = nullptr;  // [M]
};
std::span<const Kernel<QuantizeArgs>> quantize_kernels();

// Largest K whose int32 sums of |int16 x| <= 255 times |int8 weight| <= 128 cannot overflow.
inline constexpr int64_t kMaxInt8K = 65536;

// Dense int8 linear layer: acc_i32 = sum_k x[m, k] * weight[n, k], exact for every int8 value;
// y = activation(float(acc_i32) * (x_scale[m] * weight_scale[n]) + bias[n]).
struct GemmInt8Args {
  const int16_t* x = nullptr;  // [M, ldx] from QuantizeArgs
  const float* x_scale = nullptr;
  int64_t M = 0, N = 0, K = 0, ldx = 0;
  const int8_t* weight = nullptr;  // [N, K]
  const float* weight_scale = nullptr;
  float* y = nullptr;  // [M, ldy]
  int64_t ldy = 0;
  Epilogue epilogue;
};
std::span<const Kernel<GemmInt8Args>> gemm_int8_kernels();

// The same with an int8 weight in CSR order.
struct SpmmInt8Args {
  CsrView<int8_t> weight;
  const float* weight_scale = nullptr;
  const int16_t* x = nullptr;
  const float* x_scale = nullptr;
  int64_t M = 0, ldx = 0;
  float* y = nullptr;
  int64_t ldy = 0;
  Epilogue epilogue;
};
std::span<const Kernel<SpmmInt8Args>> spmm_int8_kernels();

// Peak rates of the calling thread, for rooflines. `tiles` is ignored by both.
struct ProbeArgs {
  const float* data = nullptr;  // read probe: 64-byte aligned, rows.size() floats, a multiple of 64
  int64_t repeats = 0;
  float* sink = nullptr;  // one float, so that the work is not removed
};
// Floating-point operations of one repeat in each lane of a vector, all on registers.
inline constexpr int64_t kFmaProbeFlopsPerLane = 2 * 12;
struct Probe {
  const char* name;
  Isa isa;
  int64_t lanes;
  void (*fma)(const ProbeArgs& args);
  void (*read)(const ProbeArgs& args, Range floats);
};
std::span<const Probe> probes();

// Every kernel of every table, for listings and for tests that run each one by name.
struct KernelInfo {
  const char* op;
  const char* name;
  Isa isa;
};
std::span<const KernelInfo> all_kernels();

}  // namespace sparsecore
