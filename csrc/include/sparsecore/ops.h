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
  int64_t threads = 1;  // that share an image by pixels: it is cut into as many tiles for each
};
using SpmmArgs = SpmmOf<CsrView<float>>;
using SpmmBlockArgs = SpmmOf<BlockCsrView<float>>;  // block_rows 4 or 8; the rows argument of run counts blocks
using SpmmPanelArgs = SpmmOf<PanelView<float>>;     // the rows argument of run counts blocks
using SpmmJitArgs = SpmmOf<JitView>;                // the rows argument of run counts blocks; no scalar kernel
using SpmmBitmapArgs = SpmmOf<BitmapView>;          // Layout::kRows only; the rows argument of run counts blocks
using SpmmPlanesArgs = SpmmOf<PlanesView>;          // sums of x are scaled at their end; the rows of run count blocks
std::span<const Kernel<SpmmArgs>> spmm_kernels();
std::span<const Kernel<SpmmBlockArgs>> spmm_block_kernels();
std::span<const Kernel<SpmmPanelArgs>> spmm_panel_kernels();
std::span<const Kernel<SpmmJitArgs>> spmm_jit_kernels();
std::span<const Kernel<SpmmBitmapArgs>> spmm_bitmap_kernels();
std::span<const Kernel<SpmmPlanesArgs>> spmm_planes_kernels();

// Sizes of a convolution: x[batch, channels, height, width], y[batch, N, out_height, out_width].
struct ConvShape {
  int64_t batch = 0, channels = 0, height = 0, width = 0;
  int64_t out_height = 0, out_width = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;
  int64_t padding_h = 0, padding_w = 0;
  int64_t dilation_h = 1, dilation_w = 1;
};

// Direct sparse convolution: x[batch, C, H, W], weight[N, C/groups * KH * KW], y and residual[batch, N, OH, OW], all
// contiguous. Numbers as in spmm. Padding contributes zeros (so 0 * inf there is NaN, as in a dense convolution).
template <class Weight>
struct Conv2dOf : ConvShape {
  Weight weight;
  int64_t groups = 1;
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  void* y = nullptr;
  const void* residual = nullptr;
  Epilogue epilogue;
  int64_t threads = 1;  // that share an image by pixels: it is cut into as many tiles for each
};
using Conv2dArgs = Conv2dOf<CsrView<float>>;
using Conv2dBlockArgs = Conv2dOf<BlockCsrView<float>>;  // no block in two groups
using Conv2dPanelArgs = Conv2dOf<PanelView<float>>;     // one group; panels of whole channels; rows of run are blocks
std::span<const Kernel<Conv2dArgs>> conv2d_kernels();
std::span<const Kernel<Conv2dBlockArgs>> conv2d_block_kernels();
using Conv2dJitArgs = Conv2dOf<JitView>;  // one group; rows of run are blocks; no scalar kernel
std::span<const Kernel<Conv2dPanelArgs>> conv2d_panel_kernels();
std::span<const Kernel<Conv2dJitArgs>> conv2d_jit_kernels();

// Pooling of planes: x[batch, C, H, W], y[batch, C, OH, OW], all contiguous, numbers as in spmm. The rows argument of
// run counts channels. Tap (kh, kw) of output (oh, ow) is pixel (oh * stride_h - padding_h + kh * dilation_h, ...); a
// tap outside of x is left out. Every output has a tap with row < H and column < W (what ceil_mode may add has).
//   max      NaN if any is NaN; -infinity where no tap is inside
//   average  float32 sum / divisor; dilation 1. The divisor is divisor_override, if that is not 0; else the taps inside
//            of x or, with count_include_pad, inside of x and its padding
// The sum runs over each column of a window first and then over the columns; a window that is all of x, over all pixels
// in an order that the kernel chooses.
enum class PoolMode { kMax, kAverage };
struct Pool2dArgs {
  PoolMode mode = PoolMode::kMax;
  int64_t batch = 0, channels = 0, height = 0, width = 0;
  int64_t out_height = 0, out_width = 0;
  int64_t kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1;  // stride_w less than 2^26
  int64_t padding_h = 0, padding_w = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  bool count_include_pad = true;
  int64_t divisor_override = 0;
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  void* y = nullptr;
  int64_t threads = 1;  // that share an image by pixels: it is cut into as many tiles for each
};
std::span<const Kernel<Pool2dArgs>> pool2d_kernels();

// y = activation(x * scale + shift + residual) on [batch, C, P], all contiguous: one fused multiply-add, then one
// addition. Numbers as in spmm. The shift is the epilogue's bias. What is null changes nothing, not even a sign of 0.
// The rows argument of run counts channels.
struct ScaleShiftArgs {
  int64_t batch = 0, channels = 0, columns = 0;  // columns: P
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  void* y = nullptr;
  const void* residual = nullptr;  // as y, or null
  const float* scale = nullptr;    // [C], or one row of C for each image, or null
  int64_t scale_batch_stride = 0;  // 0: the same for all images
  Epilogue epilogue;
  int64_t threads = 1;  // that share an image by pixels: it is cut into as many tiles for each
};
std::span<const Kernel<ScaleShiftArgs>> scale_shift_kernels();

// Depthwise convolution with a dense weight: output channel n reads input channel n / multiplier alone. x[batch, C, H,
// W], weight[N, KH * KW] with N = C * multiplier, y and residual[batch, N, OH, OW], all contiguous. Numbers and padding
// as in conv2d, except that a zero of the weight counts as one. The rows argument of run counts output channels.
struct DepthwiseArgs : ConvShape {
  int64_t multiplier = 1;
  const float* weight = nullptr;
  Dtype dtype = Dtype::kFloat32;
  const void* x = nullptr;
  void* y = nullptr;
  const void* residual = nullptr;  // or null; added before the activation
  Epilogue epilogue;
  int64_t threads = 1;  // that share an image by pixels: it is cut into as many tiles for each
};
std::span<const Kernel<DepthwiseArgs>> depthwise_kernels();

// Largest K whose int32 sums of |x| <= 255 times |int8 weight| <= 128 cannot overflow.
inline constexpr int64_t kMaxInt8K = 65536;

// 8-bit activations in memory: integer + 128 in a byte, the channels of a pixel side by side.
//
// Output position m lies in image m / (height * width), and reads K = segments * segment_cols bytes: segment s starts
// at x + image * image_stride + row * row_stride + column * column_stride + segment_offset[s]. A linear layer has one
// image per row of x and one segment; a convolution one segment per row of its filter (padding is in the buffer).
// kReadBeyond bytes after the last one must be readable.
struct ActivationsU8 {
  const uint8_t* x = nullptr;
  int64_t images = 0, height = 1, width = 1;
  int64_t image_stride = 0, row_stride = 0, column_stride = 0;
  const int64_t* segment_offset = nullptr;  // [segments of the weight]
  const float* scale = nullptr;             // [images]
  int32_t zero_point = 128;                 // the byte that stands for 0
  int64_t positions() const { return images * height * width; }
};
inline constexpr int64_t kReadBeyond = 256;

// Integer product: acc_i32 = sum_k (byte[m, k] - zero_point) * weight[n, k], exact for all bytes and weights;
//   v = activation(fma(float(acc_i32), x_scale[image] * weight_scale[n], bias[n]) + residual)
//   y = v, rounded to its dtype, or clamp(round_half_even(v * y_inverse_scale) + y_zero_point, -128, 127) as int8
//   (NaN gives y_zero_point).
template <class Weight>
struct Int8ProductOf {
  Weight weight;
  const float* weight_scale = nullptr;  // [N]
  const int32_t* weight_sum = nullptr;  // [N] sums of the rows of the weight
  ActivationsU8 x;
  Layout layout = Layout::kRows;  // y[positions, N], or kColumns: y[image, N, height * width]
  Dtype dtype = Dtype::kFloat32;  // of y and the residual
  bool is_int8 = false;           // y is int8; kRows only, without residual
  float y_inverse_scale = 1.0f;
  int32_t y_zero_point = 0;
  void* y = nullptr;
  int64_t ldy = 0;                 // kRows: distance of positions of y; kColumns: of images
  const void* residual = nullptr;  // strides of y, or null
  Epilogue epilogue;
};
// The rows argument of run counts blocks of weight.lanes rows. Kernels support the lanes (and the table) they name.
using GemmInt8Args = Int8ProductOf<Int8View>;
using BitmapInt8Args = Int8ProductOf<BitmapInt8View>;
using LookupInt8Args = Int8ProductOf<LookupView>;
// Values of 4 bits have a scale per group of columns instead: exact int32 sums of each group of a row, and over these
// sum = fma(float(acc_i32), group_scale[n, group], sum) from 0 in order of the columns; then
//   v = activation(fma(sum, x_scale[image], bias[n]) + residual).
// weight_scale, weight_sum and x.segment_offset are not read: the one segment starts where a position does.
using LookupInt4Args = Int8ProductOf<LookupInt4View>;
std::span<const Kernel<GemmInt8Args>> gemm_int8_kernels();
std::span<const Kernel<BitmapInt8Args>> bitmap_int8_kernels();
std::span<const Kernel<LookupInt8Args>> lookup_int8_kernels();
std::span<const Kernel<LookupInt4Args>> lookup_int4_kernels();

// What the best enabled kernels want: rows of a block, columns of a group, and whether the values of slots 2 i and
// 2 i + 1 must be such that 255 * (their sum) fits in int16 (pmaddubsw saturates otherwise).
struct Int8Packing {
  int64_t lanes;
  int64_t table;
  bool has_safe_pairs;
};
// few_positions: at most kFewPositions of them, where bytes decide; otherwise the work per position does.
inline constexpr int64_t kFewPositions = 4;
Int8Packing int8_packing(bool few_positions);

// Activations to bytes (ActivationsU8), padding included: byte = clamp(round_half_even(x * (1 / scale)) + zero_point,
// -128, 127) + 128 with the scale of the image. Dynamic: scale = max|x| / 127 over the image, zero_point 0; an image of
// zeros (or of nothing above 127 times the smallest normal number) gets scale 1; one with a NaN or infinity gets scale
// NaN, and so its outputs are NaN. Otherwise a NaN gives the zero point, infinities the ends of the range. Tiles are
// rows of pixels of `out`, several at a time; with is_dynamic they are images, which must have one row and no padding,
// unless out is null: then only the scales are found. The rows argument of run is ignored.
struct QuantizeArgs {
  const void* x =
      nullptr;  // [images, height, width, channels] or, not channels_last, [images, channels, height, width]
  Dtype dtype = Dtype::kFloat32;
  bool is_int8 = false;  // x holds the integers already
  bool channels_last = true;
  int64_t images = 0, channels = 0, height = 1, width = 1;
  int64_t padding_h = 0, padding_w = 0;
  bool is_dynamic = true;
  float* scale = nullptr;  // [images], written if dynamic, else read
  int32_t zero_point = 0;
  const float* channel_inverse_scale = nullptr;  // [channels] or null: x is multiplied with it first
  uint8_t* out = nullptr;                        // [images, height + 2 padding_h, width + 2 padding_w, ld_out]
  int64_t ld_out = 0;                            // at least channels; bytes between those of pixels are not written
};
std::span<const Kernel<QuantizeArgs>> quantize_kernels();

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
