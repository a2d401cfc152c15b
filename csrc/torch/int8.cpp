// torch.ops.sparsecore.gemm_int8 and spmm_csr_int8: quantize the activations, then multiply.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "gemm_int8(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, float? x_scale=None, int x_zero_point=0, "
      "str activation='none', str kernel_name='') -> Tensor");
  m.def(
      "spmm_csr_int8(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor scale, Tensor? bias=None, "
      "float? x_scale=None, int x_zero_point=0, str activation='none', str kernel_name='') -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("gemm_int8", TORCH_BOX(&gemm_int8));
  m.impl("spmm_csr_int8", TORCH_BOX(&spmm_csr_int8));
}

}  // namespace sparsecore::torch_binding
