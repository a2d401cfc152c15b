// torch.ops.sparsecore.conv2d_csr, conv2d_panel and conv2d_jit.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/conv2d.h"
#include "torch/jit.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// set_weight(K) gives the weight, make_rows(weight) what run's rows argument counts.
template <class Args, class SetWeight, class MakeRows>
Tensor run_conv2d(std::span<const Kernel<Args>> kernels, const Tensor& x_any, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual, const Conv2dSettings& settings, int64_t groups,
                  const std::string& activation, const std::string& kernel, SetWeight set_weight, MakeRows make_rows) {
  Args args;
  const Tensor x = activations(x_any, args.dtype);
  set_shape(args, x, settings);
  args.groups = groups;
  check(groups >= 1 && args.channels % groups == 0, "expected groups that divide C = ", args.channels, ", got ",
        groups);
  args.weight = set_weight(args.channels / groups * args.kernel_h * args.kernel_w);
  check(args.weight.rows % groups == 0, "expected groups that divide N = ", args.weight.rows, ", got ", groups);
  args.epilogue = make_epilogue(bias, activation, args.weight.rows);
  check_reach(args, args.channels);
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
  const Conv2dSettings settings{kernel_size, stride, padding, dilation};
  if (values.dim() == 2) {
    return run_conv2d(
        conv2d_block_kernels(), x, bias, residual, settings, groups, activation, kernel,
        [&](int64_t K) { return block_csr_view(row_ptr, col_idx, values, K); },
        [](const BlockCsrView<float>& weight) { return BlockCsrRows<float>{weight}; });
  }
  return run_conv2d(
      conv2d_kernels(), x, bias, residual, settings, groups, activation, kernel,
      [&](int64_t K) { return csr_view<float>(row_ptr, col_idx, values, K); },
      [](const CsrView<float>& weight) { return CsrRows<float>{weight}; });
}

Tensor conv2d_panel(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                    const std::string& activation, const std::string& kernel) {
  return run_conv2d(
      conv2d_panel_kernels(), x, bias, residual, {kernel_size, stride, padding, dilation}, 1, activation, kernel,
      [&](int64_t K) {
        const PanelView<float> view = panel_view(weight, sizes);
        check(view.cols == K, "expected a panel weight with K = C * KH * KW = ", K, ", got ", view.cols);
        return view;
      },
      [](const PanelView<float>& view) { return PanelRows<float>{view}; });
}

// As spmm_jit.
Tensor conv2d_jit(const Tensor& x, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t program,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                  const std::string& activation, const std::string& kernel) {
  if (program == 0) {
    return conv2d_csr(x, row_ptr, col_idx, values, bias, residual, kernel_size, stride, padding, dilation, 1,
                      activation, kernel);
  }
  return run_conv2d(
      conv2d_jit_kernels(), x, bias, residual, {kernel_size, stride, padding, dilation}, 1, activation, kernel,
      [&](int64_t K) {
        const Pair size = pair_of(kernel_size, "kernel_size", 1);
        const JitView view = jit_view(program, row_ptr, col_idx, {size.h, size.w});
        check(view.cols == K, "expected a weight with K = C * KH * KW = ", K, ", got ", view.cols);
        return view;
      },
      [](const JitView& view) { return JitRows{view}; });
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
  m.def(
      "conv2d_jit(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, int program, Tensor? bias, "
      "Tensor? residual, int[] kernel_size, int[] stride, int[] padding, int[] dilation, str activation, "
      "str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("conv2d_csr", TORCH_BOX(&conv2d_csr));
  m.impl("conv2d_panel", TORCH_BOX(&conv2d_panel));
  m.impl("conv2d_jit", TORCH_BOX(&conv2d_jit));
}

}  // namespace sparsecore::torch_binding
