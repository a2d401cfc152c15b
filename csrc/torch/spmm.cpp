// torch.ops.sparsecore.spmm_csr and spmm_panel: arguments in, views out, run.
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

}  // namespace

// No defaults beside Tensor[]: PyTorch's autograd counts arguments before it fills defaults in.
STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def(
      "spmm_csr(Tensor x, Tensor row_ptr, Tensor col_idx, Tensor values, Tensor? bias=None, str activation='none', "
      "str layout='rows', str kernel_name='') -> Tensor");
  m.def(
      "spmm_panel(Tensor x, Tensor[] weight, int[] sizes, Tensor? bias, str activation, str layout, "
      "str kernel_name) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("spmm_csr", TORCH_BOX(&spmm_csr));
  m.impl("spmm_panel", TORCH_BOX(&spmm_panel));
}

}  // namespace sparsecore::torch_binding
