// torch.ops.sparsecore.spmm_csr, spmm_panel, spmm_jit, spmm_bitmap, spmm_planes and spmm_codebook: arguments in, views
// out, run.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"
#include "torch/codebook.h"
#include "torch/jit.h"
#include "torch/parallel.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

// Everything but the weight, which args has; rows: what run's rows argument counts.
template <class Args, class Rows>
Tensor run_spmm(Args& args, std::span<const Kernel<Args>> kernels, const Rows& rows, const Tensor& x_any,
                const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const std::string& activation,
                const std::string& layout, const std::string& kernel) {
  const Tensor x = activations(x_any, args.dtype);
  const bool is_rows = layout == "rows";
  std::vector<int64_t> shape = shape_of(x);
  const size_t k_dim = is_rows ? shape.size() - 1 : 1;
  args.layout = is_rows ? Layout::kRows : Layout::kColumns;
  args.epilogue = make_epilogue(bias, activation, args.weight.rows);
  shape[k_dim] = args.weight.rows;
  const Tensor y = new_output(x, shape, x.scalar_type());
  Tensor kept = y;
  args.batch = is_rows ? 1 : shape[0];
  args.columns = is_rows ? product(shape, 0, k_dim) : product(shape, 2, shape.size());
  args.ldx = is_rows ? args.weight.cols : args.columns;
  args.ldy = is_rows ? args.weight.rows : args.columns;
  args.x_batch_stride = args.weight.cols * args.columns;
  args.y_batch_stride = args.weight.rows * args.columns;
  args.x = x.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.residual = residual_input(residual, y, kept);
  if (y.numel() == 0) return y;
  run_kernel(choose_kernel(kernels, kernel, args), args, rows, stored_values(args.weight) * args.batch * args.columns);
  return y;
}

// values [nnz] is CSR, [nnz, 4 or 8] is CSR of blocks of rows.
Tensor spmm_csr(const Tensor& x, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values,
                const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const std::string& activation,
                const std::string& layout, const std::string& kernel) {
  const int64_t K = input_features(x, layout);
  if (values.dim() == 2) {
    SpmmBlockArgs args;
    args.weight = block_csr_view(row_ptr, col_idx, values, K);
    return run_spmm(args, spmm_block_kernels(), BlockCsrRows<float>{args.weight}, x, bias, residual, activation, layout,
                    kernel);
  }
  SpmmArgs args;
  args.weight = csr_view<float>(row_ptr, col_idx, values, K);
  return run_spmm(args, spmm_kernels(), CsrRows<float>{args.weight}, x, bias, residual, activation, layout, kernel);
}

Tensor spmm_panel(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  const std::string& activation, const std::string& layout, const std::string& kernel) {
  SpmmPanelArgs args;
  args.weight = panel_view(weight, sizes);
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  return run_spmm(args, spmm_panel_kernels(), PanelRows<float>{args.weight}, x, bias, residual, activation, layout,
                  kernel);
}

// row_ptr, col_idx and values are the weight that the program was generated from, for gradients; and for the product
// itself where there is no program (0).
Tensor spmm_jit(const Tensor& x, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t program,
                const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const std::string& activation,
                const std::string& layout, const std::string& kernel) {
  if (program == 0) {
    return spmm_csr(x, row_ptr, col_idx, values, bias, residual, activation, layout, kernel);
  }
  SpmmJitArgs args;
  args.weight = jit_view(program, row_ptr, col_idx);
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  return run_spmm(args, spmm_jit_kernels(), JitRows{args.weight}, x, bias, residual, activation, layout, kernel);
}

Tensor spmm_bitmap(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                   const std::string& activation, const std::string& kernel) {
  SpmmBitmapArgs args;
  args.weight = bitmap_view(weight, sizes);
  const std::string layout = "rows";
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  return run_spmm(args, spmm_bitmap_kernels(), BitmapRows{args.weight}, x, bias, residual, activation, layout, kernel);
}

Tensor spmm_codebook(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                     const std::string& activation, const std::string& kernel) {
  SpmmCodebookArgs args;
  args.weight = codebook_view(weight, sizes);
  const std::string layout = "rows";
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  return run_spmm(args, spmm_codebook_kernels(), CodebookRows{args.weight}, x, bias, residual, activation, layout,
                  kernel);
}

Tensor spmm_planes(const Tensor& x, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                   const std::string& activation, const std::string& layout, const std::string& kernel) {
  SpmmPlanesArgs args;
  args.weight = planes_view(weight, sizes);
  const int64_t K = input_features(x, layout);
  check(K == args.weight.cols, "expected x with K = ", args.weight.cols, ", got shape ", shape_text(x));
  // Any bits are good ones, so that there is nothing to validate, and rows are alike.
  return run_spmm(args, spmm_planes_kernels(), DenseRows{args.weight.num_blocks()}, x, bias, residual, activation,
                  layout, kernel);
}

}  // namespace

// No defaults beside Tensor[]: PyTorch's autograd counts arguments before it fills defaults in.
STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "spmm_csr(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor? bias=None, Tensor? residual=None, "
      "str activation='none', str layout='rows', str kernel_name='') -> Tensor");
  m.def(
      "spmm_panel(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation, "
      "str layout, str kernel_name) -> Tensor");
  m.def(
      "spmm_jit(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, int program, Tensor? bias, Tensor? residual, "
      "str activation, str layout, str kernel_name) -> Tensor");
  m.def(
      "spmm_bitmap(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation, "
      "str kernel_name) -> Tensor");
  m.def(
      "spmm_codebook(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation, "
      "str kernel_name) -> Tensor");
  m.def(
      "spmm_planes(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, Tensor? residual, str activation, "
      "str layout, str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_csr", TORCH_BOX(&spmm_csr));
  m.impl("spmm_panel", TORCH_BOX(&spmm_panel));
  m.impl("spmm_jit", TORCH_BOX(&spmm_jit));
  m.impl("spmm_bitmap", TORCH_BOX(&spmm_bitmap));
  m.impl("spmm_codebook", TORCH_BOX(&spmm_codebook));
  m.impl("spmm_planes", TORCH_BOX(&spmm_planes));
}

}  // namespace sparsecore::torch_binding
