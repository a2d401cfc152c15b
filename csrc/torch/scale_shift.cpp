// torch.ops.sparsecore.scale_shift.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// [C], or [batch, C].
void set_scale(ScaleShiftArgs& args, const Tensor& scale) {
  check_tensor(scale, "scale", ScalarType::Float, -1);
  const std::vector<int64_t> shape = shape_of(scale);
  const bool is_per_image = shape == std::vector<int64_t>{args.batch, args.channels};
  check(is_per_image || shape == std::vector<int64_t>{args.channels}, "expected scale of shape [", args.channels,
        "] or [", args.batch, ", ", args.channels, "], got ", shape_text(scale));
  args.scale = scale.const_data_ptr<float>();
  args.scale_batch_stride = is_per_image ? args.channels : 0;
}

Tensor scale_shift(const Tensor& x_any, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                   const std::optional<Tensor>& residual, const std::string& activation, const std::string& kernel) {
  ScaleShiftArgs args;
  const Tensor x = activations(x_any, args.dtype);
  check(x.dim() >= 2, "expected x [batch, C, ...], got shape ", shape_text(x));
  const std::vector<int64_t> shape = shape_of(x);
  args.batch = shape[0];
  args.channels = shape[1];
  args.columns = product(shape, 2, shape.size());
  if (scale) set_scale(args, *scale);
  args.epilogue = make_epilogue(std::nullopt, activation, args.channels);
  if (shift) args.epilogue.bias = row_vector(*shift, "shift", args.channels);
  const Tensor y = new_output(x, shape, x.scalar_type());
  Tensor kept = y;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.residual = residual_input(residual, y, kept);
  const Kernel<ScaleShiftArgs>& chosen = choose_kernel(scale_shift_kernels(), kernel, args);
  if (y.numel() > 0) run_kernel(chosen, args, DenseRows{args.channels}, y.numel());
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "scale_shift(Tensor x, Tensor? scale, Tensor? shift, Tensor? residual, str activation, str kernel_name) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("scale_shift", TORCH_BOX(&scale_shift)); }

}  // namespace sparsecore::torch_binding
