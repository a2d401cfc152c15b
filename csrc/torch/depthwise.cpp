// torch.ops.sparsecore.depthwise_conv2d.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/conv2d.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// weight [N, KH * KW], with any further dimensions of one; N is a multiple of C.
Tensor depthwise_conv2d(const Tensor& x_any, const Tensor& weight_any, const std::optional<Tensor>& bias,
                        const std::optional<Tensor>& residual, const std::vector<int64_t>& kernel_size,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, const std::string& activation,
                        const std::string& kernel) {
  DepthwiseArgs args;
  const Tensor x = activations(x_any, args.dtype);
  set_shape(args, x, {kernel_size, stride, padding, dilation});
  check_reach(args, 1);
  check(weight_any.is_cpu(), "expected weight on the CPU; move it with .cpu()");
  const Tensor weight = weight_any.is_contiguous() ? weight_any : torch::stable::contiguous(weight_any);
  check_tensor(weight, "weight", ScalarType::Float, -1);
  const int64_t taps = args.kernel_h * args.kernel_w, N = weight.dim() == 0 ? 0 : weight.size(0);
  check(weight.dim() >= 2 && weight.numel() == N * taps, "expected a weight [N, ", taps, "] for a filter of ",
        args.kernel_h, " x ", args.kernel_w, ", got shape ", shape_text(weight));
  check(args.channels >= 1 ? N % args.channels == 0 : N == 0,
        "expected a weight with a multiple of C = ", args.channels, " rows, got ", N);
  args.multiplier = args.channels >= 1 ? N / args.channels : 1;
  args.weight = weight.const_data_ptr<float>();
  args.epilogue = make_epilogue(bias, activation, N);
  const Tensor y = new_output(x, {args.batch, N, args.out_height, args.out_width}, x.scalar_type());
  Tensor kept = y;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.residual = residual_input(residual, y, kept);
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(depthwise_kernels(), kernel, args), args, DenseRows{N}, y.numel() * taps);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, str activation, str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d)); }

}  // namespace sparsecore::torch_binding
