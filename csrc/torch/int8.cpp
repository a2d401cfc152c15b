// torch.ops.sparsecore.linear_int8 and conv2d_int8: quantize the activations, then multiply.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/conv2d.h"
#include "torch/int8.h"
#include "torch/int8_weights.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// --- activations ---

// Distance of rows of bytes that are read together: whole cache lines, and not a multiple of 1024, or a few of them
// would evict each other from the first-level cache (lookup, 4096x4096 at 95% zeros, 16 rows: 1.5 -> 0.7 ms).
int64_t spread_bytes(int64_t bytes) {
  const int64_t lines = (bytes + 63) / 64 * 64;
  return lines % 1024 == 0 ? lines + 64 : lines;
}

// x[images, channels, height, width], in memory as args says; bytes live until the thread's next call.
ActivationsU8 quantize(const Tensor& x, QuantizeArgs args, const Quantization& how) {
  how.check_for(x);
  args.is_int8 = x.scalar_type() == ScalarType::Char;
  args.dtype = dtype_of(x.scalar_type());
  args.x = x.const_data_ptr();
  args.is_dynamic = !how.scale;
  args.zero_point = static_cast<int32_t>(how.zero_point);
  if (how.channel_inverse) {
    args.channel_inverse_scale = row_vector(*how.channel_inverse, "x_channel_inverse", args.channels);
  }
  const int64_t row_bytes = (args.width + 2 * args.padding_w) * args.ld_out;
  const int64_t image_bytes = (args.height + 2 * args.padding_h) * row_bytes;
  const int64_t scale_bytes = (args.images * int64_t(sizeof(float)) + 63) / 64 * 64;
  const int64_t scratch_bytes = scale_bytes + args.images * image_bytes + kReadBeyond;
  uint8_t* scratch = static_cast<uint8_t*>(call_scratch(scratch_bytes));
  args.scale = reinterpret_cast<float*>(scratch);
  args.out = scratch + scale_bytes;
  if (!args.is_dynamic) std::fill(args.scale, args.scale + args.images, static_cast<float>(*how.scale));
  if (Recording* recording = active_recording()) {
    recording->use_scratch(scratch, scratch_bytes);
    if (!args.is_dynamic) {  // what the scratch holds before its kernels run is not there in a replay
      const std::vector<float> scales(static_cast<size_t>(args.images), static_cast<float>(*how.scale));
      args.scale = const_cast<float*>(recording->keep_numbers(scales));
    }
  }
  const auto& kernel = choose_kernel(quantize_kernels(), "", args);
  if (args.is_dynamic && image_bytes != args.ld_out) {  // more than a row: first the scales, then the bytes
    QuantizeArgs scales = args;
    scales.out = nullptr;
    run_kernel(kernel, scales, DenseRows{1}, x.numel() / 4);
    args.is_dynamic = false;
  }
  run_kernel(kernel, args, DenseRows{1}, x.numel());
  ActivationsU8 result;
  result.x = args.out;
  result.images = args.images;
  result.image_stride = image_bytes;
  result.row_stride = row_bytes;
  result.column_stride = args.ld_out;
  result.scale = args.scale;
  result.zero_point = args.zero_point + 128;
  return result;
}

// --- outputs ---

template <class Args>
void set_output(const Int8OutputSettings& outputs, Args& args, const Tensor& y) {
  args.y = y.mutable_data_ptr();
  args.is_int8 = outputs.is_int8();
  if (!args.is_int8) {
    args.dtype = dtype_of(y.scalar_type());
    return;
  }
  args.y_inverse_scale = outputs.inverse_scale();
  args.y_zero_point = static_cast<int32_t>(outputs.zero_point);
}

// What the two operations have in common, after x and the shape of y are known.
struct Call {
  const std::vector<Tensor>& weight;
  const std::vector<int64_t>& sizes;
  const std::string& format;
  const Tensor& scale;
  const Tensor& weight_sum;
  const std::optional<Tensor>& bias;
  const std::string& activation;
  const std::string& kernel;

  // function(kernels of the format, its packed weight)
  template <class Function>
  void with_format(Function function) const {
    if (format == "int8") return function(gemm_int8_kernels(), packed_weight<Int8View>(weight, sizes));
    if (format == "bitmap") return function(bitmap_int8_kernels(), packed_weight<BitmapInt8View>(weight, sizes));
    if (format == "lookup") return function(lookup_int8_kernels(), packed_weight<LookupView>(weight, sizes));
    if (format == "lookup4") return function(lookup_int4_kernels(), packed_weight<LookupInt4View>(weight, sizes));
    fail("expected a format of int8, bitmap, lookup, lookup4, got '", format, "'; move the layer with .to('cpu')");
  }

  template <class Args, class View>
  void set_scales(Groups<View>& groups, Args& args) const {
    const int64_t N = groups.first.rows * groups.count;
    args.weight_scale = row_vector(scale, "scale", N);
    check_tensor(weight_sum, "weight_sum", ScalarType::Int, 1);
    check(weight_sum.numel() == N, "expected weight_sum [", N, "], got ", weight_sum.numel());
    args.weight_sum = weight_sum.const_data_ptr<int32_t>();
  }
  // Those of groups of columns, in the order of the packed weight.
  template <class Args>
  void set_scales(Groups<LookupInt4View>& groups, Args&) const {
    LookupInt4View& view = groups.first;
    const int64_t count = view.num_blocks() * view.groups() * view.lanes;
    check_tensor(scale, "scale", ScalarType::Float, 1);
    check_tensor(weight_sum, "weight_sum", ScalarType::Short, 1);
    check(scale.numel() == count && weight_sum.numel() == count, "expected scale and weight_sum of ", count,
          " numbers, got ", scale.numel(), " and ", weight_sum.numel(), "; pack the weight again");
    view.group_scale = scale.const_data_ptr<float>();
    view.group_sum = static_cast<const int16_t*>(weight_sum.const_data_ptr());
  }

  // Runs all groups. group_columns: bytes of x between the groups' channels; group_outputs: numbers of y between
  // their rows.
  template <class Args, class View>
  void run(std::span<const Kernel<Args>> kernels, Groups<View> groups, Args args, int64_t group_columns,
           int64_t group_outputs) const {
    const int64_t rows = groups.first.rows, N = rows * groups.count;
    set_scales(groups, args);
    args.epilogue = make_epilogue(bias, activation, N);
    const int64_t number_bytes = args.is_int8 ? 1 : args.dtype == Dtype::kFloat32 ? 4 : 2;
    const auto offset = [&](auto*& pointer, int64_t bytes) {
      if (pointer != nullptr)
        pointer = static_cast<char*>(const_cast<void*>(static_cast<const void*>(pointer))) + bytes;
    };
    for (int64_t g = 0; g < groups.count; ++g) {
      args.weight = group_of(groups.first, g);
      const auto blocks = rows_of(args.weight);
      run_kernel(choose_kernel(kernels, kernel, args), args, blocks, blocks.work() * args.x.positions());
      if (args.weight_scale != nullptr) args.weight_scale += rows;
      if (args.weight_sum != nullptr) args.weight_sum += rows;
      if (args.epilogue.bias != nullptr) args.epilogue.bias += rows;
      args.x.x += group_columns;
      offset(args.y, group_outputs * number_bytes);
      offset(args.residual, group_outputs * number_bytes);
    }
  }
};

Tensor any_input(const Tensor& x) {
  check_int8_input(x);
  check(x.is_cpu(), "expected x on the CPU; there is no CUDA kernel for this operation yet");
  return x;
}

Tensor linear_int8(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                   const std::string& format, const Tensor& scale, const Tensor& weight_sum,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                   const std::optional<double>& x_scale, int64_t x_zero_point,
                   const std::optional<Tensor>& x_channel_inverse, const std::string& activation,
                   const std::optional<double>& y_scale, int64_t y_zero_point, const std::string& kernel) {
  const Call call{weight, sizes, format, scale, weight_sum, bias, activation, kernel};
  const Tensor x = on_cpu(any_input(x_any));
  check(x.dim() >= 1, "expected x [..., K], got shape ", shape_text(x));
  Tensor y = x;
  call.with_format([&]<class Args, class View>(std::span<const Kernel<Args>> kernels, const Groups<View>& groups) {
    const int64_t K = groups.first.cols;
    check(x.size(x.dim() - 1) == K, "expected x [..., K = ", K, "], got shape ", shape_text(x));
    check(groups.count == 1 && groups.first.segments == 1, "expected the weight of a linear layer");
    std::vector<int64_t> shape = shape_of(x);
    QuantizeArgs input;
    input.images = product(shape, 0, shape.size() - 1);
    input.channels = K;
    input.ld_out = spread_bytes(K);
    shape.back() = groups.first.rows;
    const Int8OutputSettings outputs{y_scale, y_zero_point};
    y = new_output(x, shape, outputs.dtype(x.scalar_type()));
    Args args;
    set_output(outputs, args, y);
    args.ldy = groups.first.rows;
    check(!residual || !args.is_int8, "expected no residual with int8 outputs");
    Tensor kept = y;
    args.residual = residual_input(residual, y, kept);
    const int64_t start = 0;
    args.x = quantize(x, input, {x_scale, x_zero_point, x_channel_inverse});
    args.x.segment_offset = &start;
    if (y.numel() > 0) call.run(kernels, groups, args, 0, 0);
  });
  return y;
}

// [B, C, H, W] in memory as [B, H, W, C], without moving anything, and back.
Tensor channels_last_view(const Tensor& x) { return torch::stable::transpose(torch::stable::transpose(x, 1, 3), 1, 2); }
Tensor channels_first_view(const Tensor& x) {
  return torch::stable::transpose(torch::stable::transpose(x, 1, 2), 1, 3);
}

Tensor conv2d_int8(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                   const std::string& format, const Tensor& scale, const Tensor& weight_sum,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                   const std::optional<double>& x_scale, int64_t x_zero_point,
                   const std::optional<Tensor>& x_channel_inverse, const std::vector<int64_t>& kernel_size,
                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& dilation, const std::string& activation,
                   const std::optional<double>& y_scale, int64_t y_zero_point, const std::string& kernel) {
  const Call call{weight, sizes, format, scale, weight_sum, bias, activation, kernel};
  any_input(x_any);
  check(x_any.dim() == 4, "expected x [batch, C, H, W], got shape ", shape_text(x_any));
  const Pair size = pair_of(kernel_size, "kernel_size", 1), step = pair_of(stride, "stride", 1);
  const Pair pad = pair_of(padding, "padding", 0), spread = pair_of(dilation, "dilation", 1);
  Tensor y = x_any;
  call.with_format([&]<class Args, class View>(std::span<const Kernel<Args>> kernels, const Groups<View>& groups) {
    check(!std::is_same_v<View, LookupInt4View>,
          "expected int8 values in a convolution; 4-bit ones are for linear layers");
    const View& view = groups.first;
    QuantizeArgs input;
    input.images = x_any.size(0);
    input.channels = x_any.size(1);
    input.height = x_any.size(2);
    input.width = x_any.size(3);
    input.padding_h = pad.h;
    input.padding_w = pad.w;
    const int64_t taps = size.h * size.w;
    input.ld_out = taps == 1 ? spread_bytes(input.channels) : input.channels;  // rows of a filter have no gaps
    check(input.channels % groups.count == 0 && view.cols == input.channels / groups.count * taps,
          "expected a weight [N, K = C / groups * KH * KW] for ", input.channels, " channels in ", groups.count,
          " groups and ", size.h, "x", size.w, " filters, got K = ", view.cols);
    const bool is_by_row = view.segments == size.h && groups.count == 1 && spread.w == 1;
    check(is_by_row || view.segments == taps, "expected a weight packed in ", taps, " segments, got ", view.segments,
          "; pack it for this convolution");
    const int64_t out_height = output_size(input.height, size.h, step.h, pad.h, spread.h);
    const int64_t out_width = output_size(input.width, size.w, step.w, pad.w, spread.w);
    const int64_t N = view.rows * groups.count, pixels = out_height * out_width;

    // int8 outputs, and those of a floating-point channels-last input, keep the channels side by side. int8 inputs come
    // from layers between layers, and what those add to the result is contiguous.
    const Int8OutputSettings outputs{y_scale, y_zero_point};
    const Tensor by_pixel = channels_last_view(x_any);
    const bool is_last = !x_any.is_contiguous() && by_pixel.is_contiguous();
    input.channels_last = is_last || input.height * input.width == 1;
    const Tensor x = is_last ? by_pixel : on_cpu(x_any);
    Args args;
    const bool is_float_last = is_last && x.scalar_type() != ScalarType::Char;
    args.layout = is_float_last || y_scale ? Layout::kRows : Layout::kColumns;
    const ScalarType dtype = outputs.dtype(x.scalar_type());
    Tensor memory = y;
    if (args.layout == Layout::kRows) {
      memory = new_output(x, {input.images, out_height, out_width, N}, dtype);
      y = channels_first_view(memory);
    } else {
      y = memory = new_output(x, {input.images, N, out_height, out_width}, dtype);
    }
    set_output(outputs, args, memory);
    args.ldy = args.layout == Layout::kRows ? N : N * pixels;
    check(!residual || !args.is_int8, "expected no residual with int8 outputs");
    Tensor kept = y;
    if (residual) {
      check(residual->dim() == 4, "expected a residual of the output's shape ", shape_text(y), ", got ",
            shape_text(*residual));
      const bool is_rows = args.layout == Layout::kRows;
      args.residual = residual_input(is_rows ? channels_last_view(*residual) : *residual, memory, kept);
    }
    if (y.numel() == 0) return;
    args.x = quantize(x, input, {x_scale, x_zero_point, x_channel_inverse});
    args.x.height = out_height;
    args.x.width = out_width;
    std::vector<int64_t> starts;
    for (int64_t h = 0; h < size.h; ++h) {
      for (int64_t w = 0; w < (is_by_row ? 1 : size.w); ++w) {
        starts.push_back(h * spread.h * args.x.row_stride + w * spread.w * args.x.column_stride);
      }
    }
    args.x.segment_offset = starts.data();
    args.x.row_stride *= step.h;
    args.x.column_stride *= step.w;
    call.run(kernels, groups, args, input.channels / groups.count,
             args.layout == Layout::kRows ? view.rows : view.rows * pixels);
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "linear_int8(Tensor x, Tensor[] weight, int[] sizes, str format, Tensor scale, Tensor weight_sum, Tensor? bias, "
      "Tensor? residual, float? x_scale, int x_zero_point, Tensor? x_channel_inverse, str activation, float? y_scale, "
      "int y_zero_point, str kernel_name) -> Tensor");
  m.def(
      "conv2d_int8(Tensor x, Tensor[] weight, int[] sizes, str format, Tensor scale, Tensor weight_sum, Tensor? bias, "
      "Tensor? residual, float? x_scale, int x_zero_point, Tensor? x_channel_inverse, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, str activation, float? y_scale, int y_zero_point, str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("linear_int8", TORCH_BOX(&linear_int8));
  m.impl("conv2d_int8", TORCH_BOX(&conv2d_int8));
}

}  // namespace sparsecore::torch_binding
