// torch.ops.sparsecore.conv2d_csr and conv2d_panel.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/conv2d.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// set_weight(K) gives the weight, make_rows(weight) what run's rows argument counts.
template <class Args, class SetWeight, class MakeRows>
Tensor run_conv2d(std::span<const Kernel<Args>> kernels, const Tensor& x_any, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual, const Conv2dSettings& settings, const std::string& activation,
                  const std::string& kernel, SetWeight set_weight, MakeRows make_rows) {
  Args args;
  const Tensor x = activations(x_any, args.dtype);
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
  // What one packed strip holds at least: all channels times the rows that a filter reaches, for each of its columns.
  const double halo =
      double(args.channels) * double(spread.h) * double(size.h * size.w) * double(args.width + 2 * pad.w);
  check(halo < double(std::numeric_limits<int32_t>::max()), "expected a filter that reaches over fewer than 2^31 ",
        "numbers of the input, got about ", halo, "; split the layer over channels");
  const Tensor y = new_output(x, {args.batch, args.weight.rows, args.out_height, args.out_width}, x.scalar_type());
  Tensor kept = y;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.residual = residual_input(residual, y, kept);
  check(kernels.back().supports(args),
        "expected panels of whole channels and blocks inside of groups: ", args.kernel_h * args.kernel_w, " taps, ",
        args.groups, " groups; pack the weight for this filter");
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(kernels, kernel, args), args, make_rows(args.weight),
             stored_values(args.weight) * args.batch * args.out_height * args.out_width);
  return y;
}

// values [nnz] is CSR, [nnz, 4 or 8] is CSR of blocks of rows.
Tensor conv2d_csr(const Tensor& x, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                  const std::string& activation, const std::string& kernel) {
  const Conv2dSettings settings{kernel_size, stride, padding, dilation, groups};
  if (values.dim() == 2) {
    return run_conv2d(
        conv2d_block_kernels(), x, bias, residual, settings, activation, kernel,
        [&](int64_t K) { return block_csr_view(row_ptr, col_idx, values, K); },
        [](const BlockCsrView<float>& weight) { return BlockCsrRows<float>{weight}; });
  }
  return run_conv2d(
      conv2d_kernels(), x, bias, residual, settings, activation, kernel,
      [&](int64_t K) { return csr_view<float>(row_ptr, col_idx, values, K); },
      [](const CsrView<float>& weight) { return CsrRows<float>{weight}; });
}

Tensor conv2d_panel(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                    const std::string& activation, const std::string& kernel) {
  return run_conv2d(
      conv2d_panel_kernels(), x, bias, residual, {kernel_size, stride, padding, dilation, 1}, activation, kernel,
      [&](int64_t K) {
        const PanelView<float> view = panel_view(weight, sizes);
        check(view.cols == K, "expected a panel weight with K = C * KH * KW = ", K, ", got ", view.cols);
        return view;
      },
      [](const PanelView<float>& view) { return PanelRows<float>{view}; });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "conv2d_csr(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor? bias, Tensor? residual, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups=1, str activation='none', "
      "str kernel_name='') -> Tensor");
  m.def(
      "conv2d_panel(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str activation, str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("conv2d_csr", TORCH_BOX(&conv2d_csr));
  m.impl("conv2d_panel", TORCH_BOX(&conv2d_panel));
}

}  // namespace sparsecore::torch_binding
