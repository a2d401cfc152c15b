// The schemas of torch.ops.sparsecore and their CPU implementations: arguments in, views out, run.
// Built against LibTorch's stable ABI, so one binary serves many torch releases.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "sparsecore/ops.h"
#include "sparsecore/pack.h"
#include "torch/checks.h"
#include "torch/parallel.h"

namespace sparsecore::torch_binding {
namespace {

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  return std::vector<int64_t>(tensor.sizes().begin(), tensor.sizes().end());
}

int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  int64_t result = 1;
  for (size_t d = begin; d < end; ++d) result *= shape[d];
  return result;
}

Tensor float_input(const Tensor& x) {
  check(x.is_cpu(), "expected x on the CPU; there is no CUDA kernel for this operation yet");
  check(x.scalar_type() == ScalarType::Float, "expected float32 x; convert it with .float()");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Everything of spmm but the weight: shapes and pointers of x and y. Returns y.
template <class Args>
Tensor fill_spmm(Args& args, const Tensor& x, const std::optional<Tensor>& bias, const std::string& activation,
                 const std::string& layout) {
  const bool is_rows = layout == "rows";
  std::vector<int64_t> shape = shape_of(x);
  const size_t k_dim = is_rows ? shape.size() - 1 : 1;
  args.layout = is_rows ? Layout::kRows : Layout::kColumns;
  args.epilogue = make_epilogue(bias, activation, args.weight.rows);
  shape[k_dim] = args.weight.rows;
  const Tensor y = new_tensor(x, shape, ScalarType::Float);
  args.batch = is_rows ? 1 : shape[0];
  args.columns = is_rows ? product(shape, 0, k_dim) : product(shape, 2, shape.size());
  args.ldx = is_rows ? args.weight.cols : args.columns;
  args.ldy = is_rows ? args.weight.rows : args.columns;
  args.x_batch_stride = args.weight.cols * args.columns;
  args.y_batch_stride = args.weight.rows * args.columns;
  args.x = x.const_data_ptr<float>();
  args.y = y.mutable_data_ptr<float>();
  return y;
}

// K, after x and layout are known to have one.
int64_t input_features(const Tensor& x, const std::string& layout) {
  check(layout == "rows" || layout == "columns", "expected layout rows or columns, got '", layout, "'");
  const bool is_rows = layout == "rows";
  check(x.dim() >= (is_rows ? 1 : 2), "expected x [..., K] for rows or [batch, K, ...] for columns, got shape ",
        shape_text(x));
  return x.size(is_rows ? x.dim() - 1 : 1);
}

Tensor spmm_csr(const Tensor& x_any, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                const std::optional<Tensor>& bias, const std::string& activation, const std::string& layout,
                const std::string& kernel) {
  const Tensor x = float_input(x_any);
  SpmmArgs args;
  args.weight = csr_view<float>(row_ptr, col_idx, values, input_features(x, layout));
  const Tensor y = fill_spmm(args, x, bias, activation, layout);
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(spmm_kernels(), kernel, args), args, CsrRows<float>{args.weight},
             args.weight.nnz * args.batch * args.columns);
  return y;
}

Tensor spmm_panel(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                  const std::optional<Tensor>& bias, const std::string& activation, const std::string& layout,
                  const std::string& kernel) {
  const Tensor x = float_input(x_any);
  SpmmPanelArgs args;
  args.weight = panel_view(weight, sizes);
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  const Tensor y = fill_spmm(args, x, bias, activation, layout);
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(spmm_panel_kernels(), kernel, args), args, PanelRows<float>{args.weight},
             args.weight.nnz * args.batch * args.columns);
  return y;
}

// The two entries of a list argument, each in [least, 2^31).
struct Pair {
  int64_t h, w;
};
Pair pair_of(const std::vector<int64_t>& list, const char* name, int64_t least) {
  check(list.size() == 2, "expected two numbers for ", name, ", got ", list.size());
  for (const int64_t value : list) {
    check(value >= least && value <= std::numeric_limits<int32_t>::max(), "expected ", name, " >= ", least, ", got ",
          value);
  }
  return {list[0], list[1]};
}

int64_t output_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = dilation * (kernel - 1) + 1;
  check(input + 2 * padding >= reach, "expected an input of at least ", reach, " pixels with its padding, got ",
        input + 2 * padding);
  return (input + 2 * padding - reach) / stride + 1;
}

// Settings of a convolution as they come from Python.
struct Conv2dSettings {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  int64_t groups;
};

// Everything of conv2d but the weight, into args; set_weight(K) gives the weight. Returns y.
template <class Args, class SetWeight>
Tensor fill_conv2d(Args& args, const Tensor& x, const std::optional<Tensor>& bias, const Conv2dSettings& settings,
                   const std::string& activation, SetWeight set_weight) {
  check(x.dim() == 4, "expected x [batch, C, H, W], got shape ", shape_text(x));
  const Pair size = pair_of(settings.kernel_size, "kernel_size", 1), step = pair_of(settings.stride, "stride", 1);
  const Pair pad = pair_of(settings.padding, "padding", 0), spread = pair_of(settings.dilation, "dilation", 1);
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.height = x.size(2);
  args.width = x.size(3);
  args.groups = settings.groups;
  check(args.groups >= 1 && args.channels % args.groups == 0, "expected groups that divide C = ", args.channels,
        ", got ", args.groups);
  args.weight = set_weight(args.channels / args.groups * size.h * size.w);
  check(args.weight.rows % args.groups == 0, "expected groups that divide N = ", args.weight.rows, ", got ",
        args.groups);
  args.epilogue = make_epilogue(bias, activation, args.weight.rows);
  args.kernel_h = size.h, args.kernel_w = size.w;
  args.stride_h = step.h, args.stride_w = step.w;
  args.padding_h = pad.h, args.padding_w = pad.w;
  args.dilation_h = spread.h, args.dilation_w = spread.w;
  args.out_height = output_size(args.height, size.h, step.h, pad.h, spread.h);
  args.out_width = output_size(args.width, size.w, step.w, pad.w, spread.w);
  // What one packed strip holds at least: all channels times the rows that a filter reaches.
  const double halo = double(args.channels) * double(spread.h) * double(size.h) * double(args.width + 2 * pad.w);
  check(halo < double(std::numeric_limits<int32_t>::max()), "expected a filter that reaches over fewer than 2^31 ",
        "numbers of the input, got about ", halo, "; split the layer over channels");
  const Tensor y = new_tensor(x, {args.batch, args.weight.rows, args.out_height, args.out_width}, ScalarType::Float);
  args.x = x.const_data_ptr<float>();
  args.y = y.mutable_data_ptr<float>();
  return y;
}

template <class Args>
int64_t conv2d_work(const Args& args) {
  return args.weight.nnz * args.batch * args.out_height * args.out_width;
}

Tensor conv2d_csr(const Tensor& x_any, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                  const std::optional<Tensor>& bias, const std::vector<int64_t>& kernel_size,
                  const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                  const std::vector<int64_t>& dilation, int64_t groups, const std::string& activation,
                  const std::string& kernel) {
  const Tensor x = float_input(x_any);
  Conv2dArgs args;
  const Tensor y = fill_conv2d(args, x, bias, {kernel_size, stride, padding, dilation, groups}, activation,
                               [&](int64_t K) { return csr_view<float>(row_ptr, col_idx, values, K); });
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(conv2d_kernels(), kernel, args), args, CsrRows<float>{args.weight}, conv2d_work(args));
  return y;
}

Tensor conv2d_panel(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                    const std::optional<Tensor>& bias, const std::vector<int64_t>& kernel_size,
                    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                    const std::vector<int64_t>& dilation, const std::string& activation, const std::string& kernel) {
  const Tensor x = float_input(x_any);
  Conv2dPanelArgs args;
  const Tensor y = fill_conv2d(args, x, bias, {kernel_size, stride, padding, dilation, 1}, activation, [&](int64_t K) {
    const PanelView<float> view = panel_view(weight, sizes);
    check(view.cols == K, "expected a panel weight with K = C * KH * KW = ", K, ", got ", view.cols);
    return view;
  });
  check(conv2d_panel_kernels().back().supports(args), "expected panels of whole channels (",
        args.kernel_h * args.kernel_w, " taps each), got ", args.weight.panel_cols,
        " columns; pack the weight for this filter");
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(conv2d_panel_kernels(), kernel, args), args, PanelRows<float>{args.weight},
             conv2d_work(args));
  return y;
}

// Rows of float32 activations as the int8 kernels want them: int16 with the zero point taken off.
struct QuantizedRows {
  int64_t ld = 0;
  Tensor values, scale;

  QuantizedRows(const Tensor& x, int64_t M, int64_t K, const std::optional<double>& x_scale, int64_t zero_point)
      : ld((K + 15) / 16 * 16),
        values(new_tensor(x, {M, ld}, ScalarType::Short)),
        scale(new_tensor(x, {M}, ScalarType::Float)) {
    check(!x_scale || (*x_scale > 0.0 && *x_scale <= std::numeric_limits<float>::max()),
          "expected a positive finite x_scale, got ", x_scale.value_or(0.0));
    check(zero_point >= -128 && zero_point <= 127, "expected x_zero_point in [-128, 127], got ", zero_point);
    QuantizeArgs args;
    args.x = x.const_data_ptr<float>();
    args.M = M;
    args.K = args.ldx = K;
    args.is_dynamic = !x_scale;
    args.static_scale = static_cast<float>(x_scale.value_or(1.0));
    args.zero_point = static_cast<int32_t>(zero_point);
    args.out = values.mutable_data_ptr<int16_t>();
    args.ld_out = ld;
    args.scale = scale.mutable_data_ptr<float>();
    run_kernel(choose_kernel(quantize_kernels(), "", args), args, DenseRows{1}, x.numel());
  }
};

// Shared by both int8 operations: x [..., K] float32 -> y [..., N].
struct LinearShape {
  Tensor x, y;
  int64_t M = 0;

  LinearShape(const Tensor& x_any, int64_t N, int64_t K) : x(float_input(x_any)), y(x) {
    check(x.dim() >= 1 && x.size(x.dim() - 1) == K, "expected x [..., K = ", K, "], got shape ", shape_text(x));
    check(K <= kMaxInt8K, "expected K <= ", kMaxInt8K, " so that int32 sums are exact, got ", K);
    std::vector<int64_t> shape = shape_of(x);
    M = product(shape, 0, shape.size() - 1);
    shape.back() = N;
    y = new_tensor(x, shape, ScalarType::Float);
  }
};

Tensor gemm_int8(const Tensor& x_any, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& bias,
                 const std::optional<double>& x_scale, int64_t x_zero_point, const std::string& activation,
                 const std::string& kernel) {
  check_tensor(weight, "weight", ScalarType::Char, 2);
  const LinearShape shape(x_any, weight.size(0), weight.size(1));
  GemmInt8Args args;
  args.M = shape.M;
  args.N = args.ldy = weight.size(0);
  args.K = weight.size(1);
  args.weight = weight.const_data_ptr<int8_t>();
  args.weight_scale = row_vector(scale, "scale", args.N);
  args.epilogue = make_epilogue(bias, activation, args.N);
  const QuantizedRows rows(shape.x, args.M, args.K, x_scale, x_zero_point);
  args.x = rows.values.const_data_ptr<int16_t>();
  args.x_scale = rows.scale.const_data_ptr<float>();
  args.ldx = rows.ld;
  args.y = shape.y.mutable_data_ptr<float>();
  if (shape.y.numel() == 0) return shape.y;
  run_kernel(choose_kernel(gemm_int8_kernels(), kernel, args), args, DenseRows{args.N}, args.M * args.N * args.K);
  return shape.y;
}

Tensor spmm_csr_int8(const Tensor& x_any, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                     const Tensor& scale, const std::optional<Tensor>& bias, const std::optional<double>& x_scale,
                     int64_t x_zero_point, const std::string& activation, const std::string& kernel) {
  check(x_any.dim() >= 1, "expected x [..., K], got shape ", shape_text(x_any));
  SpmmInt8Args args;
  args.weight = csr_view<int8_t>(row_ptr, col_idx, values, x_any.size(x_any.dim() - 1));
  const LinearShape shape(x_any, args.weight.rows, args.weight.cols);
  args.M = shape.M;
  args.ldy = args.weight.rows;
  args.weight_scale = row_vector(scale, "scale", args.weight.rows);
  args.epilogue = make_epilogue(bias, activation, args.weight.rows);
  const QuantizedRows rows(shape.x, args.M, args.weight.cols, x_scale, x_zero_point);
  args.x = rows.values.const_data_ptr<int16_t>();
  args.x_scale = rows.scale.const_data_ptr<float>();
  args.ldx = rows.ld;
  args.y = shape.y.mutable_data_ptr<float>();
  if (shape.y.numel() == 0) return shape.y;
  run_kernel(choose_kernel(spmm_int8_kernels(), kernel, args), args, CsrRows<int8_t>{args.weight},
             args.weight.nnz * args.M);
  return shape.y;
}

// Calls function(constant T) with the type that packing uses for a dtype.
template <class Function>
void with_packed_type(ScalarType dtype, Function function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return function(uint16_t{});
    case ScalarType::Char:
      return function(int8_t{});
    default:
      fail("expected a float32, float16, bfloat16 or int8 weight; convert it first");
  }
}

// Rows are independent in both passes of packing; about 100 rows of 1000 columns are worth a thread.
template <class Function>
void for_rows(int64_t rows, int64_t cols, Function function) {
  const int64_t grain = std::max<int64_t>(kSerialWork / std::max<int64_t>(cols, 1), 1);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) { function(Range{begin, end}); });
}

std::tuple<Tensor, Tensor, Tensor> pack_csr(const Tensor& weight, const std::optional<Tensor>& mask) {
  check_tensor(weight, "weight", weight.scalar_type(), 2);
  const int64_t N = weight.size(0), K = weight.size(1);
  check(K <= std::numeric_limits<int32_t>::max(), "expected K < 2^31, got ", K);
  const bool* kept = nullptr;
  if (mask) {
    check_tensor(*mask, "mask", ScalarType::Bool, 2);
    check(mask->size(0) == N && mask->size(1) == K, "expected mask of shape ", shape_text(weight), ", got ",
          shape_text(*mask));
    kept = static_cast<const bool*>(mask->const_data_ptr());
  }
  Tensor row_ptr = new_tensor(weight, {N + 1}, ScalarType::Int), col_idx = row_ptr, values = row_ptr;
  with_packed_type(weight.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* dense = static_cast<const T*>(weight.const_data_ptr());
    std::vector<int64_t> counts(static_cast<size_t>(N));
    for_rows(N, K, [&](Range rows) { count_kept<T>(dense, kept, K, rows, counts.data()); });
    int32_t* ends = row_ptr.mutable_data_ptr<int32_t>();
    int64_t nnz = 0;
    ends[0] = 0;
    for (int64_t n = 0; n < N; ++n) {
      nnz += counts[static_cast<size_t>(n)];
      check(nnz <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 kept entries");
      ends[n + 1] = static_cast<int32_t>(nnz);
    }
    col_idx = new_tensor(weight, {nnz}, ScalarType::Int);
    values = new_tensor(weight, {nnz}, weight.scalar_type());
    int32_t* columns = col_idx.mutable_data_ptr<int32_t>();
    T* packed = static_cast<T*>(values.mutable_data_ptr());
    for_rows(N, K, [&](Range rows) { fill_csr<T>(dense, kept, K, rows, ends, columns, packed); });
  });
  return {row_ptr, col_idx, values};
}

// A view with validated contents, for passes that are not worth splitting by work.
template <class T>
CsrView<T> validated_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  check_tensor(row_ptr, "row_ptr", ScalarType::Int, 1);
  check_tensor(col_idx, "col_idx", ScalarType::Int, 1);
  check_tensor(values, "values", values.scalar_type(), 1);
  check(row_ptr.numel() >= 1 && col_idx.numel() == values.numel() && cols >= 0,
        "expected row_ptr [N + 1], as many col_idx as values, and K >= 0");
  const CsrView<T> view{row_ptr.numel() - 1,
                        cols,
                        values.numel(),
                        row_ptr.const_data_ptr<int32_t>(),
                        col_idx.const_data_ptr<int32_t>(),
                        static_cast<const T*>(values.const_data_ptr())};
  const char* text = validate_csr(cols, view.nnz, view.row_ptr, view.col_idx, {0, view.rows});
  if (text == nullptr && (view.row_ptr[0] != 0 || view.row_ptr[view.rows] != view.nnz)) {
    text = "row_ptr must rise from 0 to nnz";
  }
  if (text != nullptr) fail("invalid CSR weight: ", text);
  return view;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pack_panel(const Tensor& row_ptr, const Tensor& col_idx,
                                                                      const Tensor& values, int64_t cols,
                                                                      int64_t block_rows, int64_t panel_cols) {
  check_tensor(values, "values", ScalarType::Float, 1);
  check(block_rows >= 1 && block_rows <= kMaxBlockRows, "expected block_rows in [1, ", kMaxBlockRows, "], got ",
        block_rows);
  check(panel_cols >= 1 && panel_cols <= kMaxPanelCols, "expected panel_cols in [1, ", kMaxPanelCols, "], got ",
        panel_cols);
  const CsrView<float> weight = validated_view<float>(row_ptr, col_idx, values, cols);
  PanelView<float> shape;
  shape.rows = weight.rows;
  shape.cols = weight.cols;
  shape.block_rows = block_rows;
  shape.panel_cols = panel_cols;
  const int64_t runs = count_panel_runs(weight, block_rows, panel_cols), ends = shape.num_segments() + 1;
  check(runs <= std::numeric_limits<int32_t>::max(), "expected fewer than 2^31 runs; take wider panels");
  const Tensor run_ptr = new_tensor(row_ptr, {ends}, ScalarType::Int);
  const Tensor entry_ptr = new_tensor(row_ptr, {ends}, ScalarType::Int);
  const Tensor run_row = new_tensor(row_ptr, {runs}, ScalarType::Byte);
  const Tensor run_length = new_tensor(row_ptr, {runs}, ScalarType::Byte);
  const Tensor panel_col = new_tensor(row_ptr, {weight.nnz}, ScalarType::Byte);
  const Tensor packed = torch::stable::empty_like(values);
  fill_panel<float>(weight, block_rows, panel_cols,
                    {run_ptr.mutable_data_ptr<int32_t>(), entry_ptr.mutable_data_ptr<int32_t>(),
                     run_row.mutable_data_ptr<uint8_t>(), run_length.mutable_data_ptr<uint8_t>(),
                     panel_col.mutable_data_ptr<uint8_t>(), packed.mutable_data_ptr<float>()});
  return {run_ptr, entry_ptr, run_row, run_length, panel_col, packed};
}

std::tuple<Tensor, Tensor, Tensor> unpack_panel(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const PanelView<float> view = panel_view(weight, sizes);
  const char* text = validate_panel(view, {0, view.num_blocks()});
  if (text != nullptr) fail("invalid panel weight: ", text);
  check(view.entry_ptr[view.num_segments()] == view.nnz, "invalid panel weight: its segments hold fewer entries");
  const Tensor row_ptr = new_tensor(weight[0], {view.rows + 1}, ScalarType::Int);
  const Tensor col_idx = new_tensor(weight[0], {view.nnz}, ScalarType::Int);
  const Tensor values = torch::stable::empty_like(weight[5]);
  sparsecore::unpack_panel<float>(view, row_ptr.mutable_data_ptr<int32_t>(), col_idx.mutable_data_ptr<int32_t>(),
                                  values.mutable_data_ptr<float>());
  return {row_ptr, col_idx, values};
}

Tensor unpack_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  const Tensor dense = new_tensor(values, {std::max<int64_t>(row_ptr.numel() - 1, 0), cols}, values.scalar_type());
  with_packed_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const CsrView<T> view = validated_view<T>(row_ptr, col_idx, values, cols);
    T* out = static_cast<T*>(dense.mutable_data_ptr());
    for_rows(view.rows, cols, [&](Range rows) { sparsecore::unpack_csr<T>(view, rows, out); });
  });
  return dense;
}

std::tuple<Tensor, Tensor, Tensor> transpose_csr(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                                                 int64_t cols) {
  const Tensor row_ptr_t = new_tensor(row_ptr, {cols + 1}, ScalarType::Int);
  const Tensor col_idx_t = torch::stable::empty_like(col_idx), values_t = torch::stable::empty_like(values);
  with_packed_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    sparsecore::transpose_csr<T>(validated_view<T>(row_ptr, col_idx, values, cols),
                                 row_ptr_t.mutable_data_ptr<int32_t>(), col_idx_t.mutable_data_ptr<int32_t>(),
                                 static_cast<T*>(values_t.mutable_data_ptr()));
  });
  return {row_ptr_t, col_idx_t, values_t};
}

}  // namespace

// No defaults beside Tensor[]: PyTorch's autograd counts arguments before it fills defaults in.
STABLE_TORCH_LIBRARY(sparsecore, m) {
  m.def(
      "spmm_csr(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor? bias=None, str activation='none', "
      "str layout='rows', str kernel_name='') -> Tensor");
  m.def(
      "conv2d_csr(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor? bias, int[] kernel_size, "
      "int[] stride, int[] padding, int[] dilation, int groups=1, str activation='none', str kernel_name='') -> "
      "Tensor");
  m.def(
      "spmm_panel(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, str activation, str layout, "
      "str kernel_name) -> Tensor");
  m.def(
      "conv2d_panel(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, str activation, str kernel_name) -> Tensor");
  m.def(
      "gemm_int8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, float? x_scale=None, int x_zero_point=0, "
      "str activation='none', str kernel_name='') -> Tensor");
  m.def(
      "spmm_csr_int8(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor scale, Tensor? bias=None, "
      "float? x_scale=None, int x_zero_point=0, str activation='none', str kernel_name='') -> Tensor");
  m.def("pack_csr(Tensor weight, Tensor? mask=None) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def(
      "pack_panel(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int block_rows, int panel_cols) -> "
      "(Tensor run_ptr, Tensor entry_ptr, Tensor run_row, Tensor run_length, Tensor panel_col, Tensor values)");
  m.def("unpack_panel(Tensor[] weight, int[] sizes) -> (Tensor row_ptr, Tensor col_idx, Tensor values)");
  m.def("unpack_csr(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> Tensor");
  m.def("transpose_csr(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_csr", TORCH_BOX(&spmm_csr));
  m.impl("conv2d_csr", TORCH_BOX(&conv2d_csr));
  m.impl("spmm_panel", TORCH_BOX(&spmm_panel));
  m.impl("conv2d_panel", TORCH_BOX(&conv2d_panel));
  m.impl("gemm_int8", TORCH_BOX(&gemm_int8));
  m.impl("spmm_csr_int8", TORCH_BOX(&spmm_csr_int8));
  m.impl("pack_csr", TORCH_BOX(&pack_csr));
  m.impl("pack_panel", TORCH_BOX(&pack_panel));
  m.impl("unpack_panel", TORCH_BOX(&unpack_panel));
  m.impl("unpack_csr", TORCH_BOX(&unpack_csr));
  m.impl("transpose_csr", TORCH_BOX(&transpose_csr));
}

}  // namespace sparsecore::torch_binding
