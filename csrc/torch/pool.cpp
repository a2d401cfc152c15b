// torch.ops.sparsecore.max_pool2d, avg_pool2d and global_avg_pool2d.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/conv2d.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// x and its sizes.
Tensor set_input(Pool2dArgs& args, const Tensor& x_any) {
  const Tensor x = activations(x_any, args.dtype);
  check(x.dim() == 4, "expected x [batch, C, H, W], got shape ", shape_text(x));
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.height = x.size(2);
  args.width = x.size(3);
  check(args.height > 0 && args.width > 0, "expected images of at least one pixel, got shape ", shape_text(x));
  args.x = x.const_data_ptr();
  return x;
}

// Outputs along one axis. With ceil_mode the last window may end past the padding, but begins before it.
int64_t pooled_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t reach = dilation * (kernel - 1) + 1;
  check(padding <= reach / 2, "expected padding of at most half of a window, ", reach / 2, ", got ", padding);
  const int64_t room = input + 2 * padding - reach + (ceil_mode ? stride - 1 : 0);
  check(room >= 0, "expected an input of at least ", reach - (ceil_mode ? stride - 1 : 0),
        " pixels with its padding, got ", input + 2 * padding);
  const int64_t size = room / stride + 1;
  return ceil_mode && (size - 1) * stride >= input + padding ? size - 1 : size;
}

void set_windows(Pool2dArgs& args, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode) {
  const Pair size = pair_of(kernel_size, "kernel_size", 1), step = pair_of(stride, "stride", 1);
  const Pair pad = pair_of(padding, "padding", 0), spread = pair_of(dilation, "dilation", 1);
  args.kernel_h = size.h, args.kernel_w = size.w;
  args.stride_h = step.h, args.stride_w = step.w;
  args.padding_h = pad.h, args.padding_w = pad.w;
  args.dilation_h = spread.h, args.dilation_w = spread.w;
  args.out_height = pooled_size(args.height, size.h, step.h, pad.h, spread.h, ceil_mode);
  args.out_width = pooled_size(args.width, size.w, step.w, pad.w, spread.w, ceil_mode);
}

Tensor run_pool2d(Pool2dArgs& args, const Tensor& x, const std::string& kernel) {
  const Tensor y = new_output(x, {args.batch, args.channels, args.out_height, args.out_width}, x.scalar_type());
  args.y = y.mutable_data_ptr();
  const Kernel<Pool2dArgs>& chosen = choose_kernel(pool2d_kernels(), kernel, args);
  if (y.numel() > 0) run_kernel(chosen, args, DenseRows{args.channels}, x.numel() + y.numel());
  return y;
}

Tensor max_pool2d(const Tensor& x_any, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, bool ceil_mode,
                  const std::string& kernel) {
  Pool2dArgs args;
  const Tensor x = set_input(args, x_any);
  set_windows(args, kernel_size, stride, padding, dilation, ceil_mode);
  return run_pool2d(args, x, kernel);
}

Tensor avg_pool2d(const Tensor& x_any, const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, bool ceil_mode, bool count_include_pad, int64_t divisor_override,
                  const std::string& kernel) {
  Pool2dArgs args;
  args.mode = PoolMode::kAverage;
  args.count_include_pad = count_include_pad;
  args.divisor_override = divisor_override;
  const Tensor x = set_input(args, x_any);
  set_windows(args, kernel_size, stride, padding, {1, 1}, ceil_mode);
  return run_pool2d(args, x, kernel);
}

Tensor global_avg_pool2d(const Tensor& x_any, const std::string& kernel) {
  Pool2dArgs args;
  args.mode = PoolMode::kAverage;
  const Tensor x = set_input(args, x_any);
  args.kernel_h = args.height, args.kernel_w = args.width;
  args.out_height = args.out_width = 1;
  return run_pool2d(args, x, kernel);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "max_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
      "str kernel_name) -> Tensor");
  m.def(
      "avg_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, bool count_include_pad, "
      "int divisor_override, str kernel_name) -> Tensor");
  m.def("global_avg_pool2d(Tensor x, str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("global_avg_pool2d", TORCH_BOX(&global_avg_pool2d));
}

}  // namespace sparsecore::torch_binding
