// torch.ops.sparsecore.jit_generate, jit_nbytes and jit_free. The products are in spmm.cpp and conv2d.cpp.
#include "torch/jit.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "sparsecore/jit.h"
#include "torch/numbered.h"
#include "torch/recording.h"
#include "torch/validated.h"

namespace sparsecore::torch_binding {
namespace {

Numbered<const JitProgram>& programs() {
  static auto* all = new Numbered<const JitProgram>("generated program");  // outlives what Python frees at exit
  return *all;
}

// kernel_size is empty for a product, [KH, KW] for a convolution with cols = C * KH * KW.
int64_t jit_generate(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols,
                     const std::vector<int64_t>& kernel_size) {
  check_tensor(values, "values", ScalarType::Float, 1);
  const bool is_conv = !kernel_size.empty();
  check(!is_conv || (kernel_size.size() == 2 && kernel_size[0] >= 1 && kernel_size[1] >= 1 &&
                     kernel_size[0] <= cols / kernel_size[1] && cols % (kernel_size[0] * kernel_size[1]) == 0),
        "expected a kernel_size [KH, KW] whose product divides the columns, ", cols);
  auto program = JitProgram::generate(validated_view<float>(row_ptr, col_idx, values, cols),
                                      is_conv ? kernel_size[0] : 0, is_conv ? kernel_size[1] : 0);
  return program == nullptr ? 0 : programs().add(std::move(program));
}

int64_t jit_nbytes(int64_t program) { return programs().find(program)->nbytes(); }

void jit_free(int64_t program) { programs().erase(program); }

}  // namespace

JitView jit_view(int64_t number, const Tensor& row_ptr, const Tensor& col_idx, Filter filter) {
  std::shared_ptr<const JitProgram> program = programs().find(number);
  const JitView view = program->view();
  check(row_ptr.numel() == view.rows + 1 && col_idx.numel() == view.nnz,
        "expected the program of this weight, got that of one with ", view.rows, " rows and ", view.nnz, " entries");
  const bool is_product = filter.h * filter.w == 0 && view.kernel_h * view.kernel_w <= 1;
  check(is_product || (view.kernel_h == filter.h && view.kernel_w == filter.w), "expected a program for filters of ",
        filter.h, " x ", filter.w, ", got one for ", view.kernel_h, " x ", view.kernel_w, " (0 x 0: for products)");
  if (Recording* recording = active_recording()) recording->keep(std::move(program));
  return view;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("jit_generate(Tensor row_ptr, Tensor col_idx, Tensor values, int cols, int[] kernel_size=[]) -> int");
  m.def("jit_nbytes(int program) -> int");
  m.def("jit_free(int program) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) { m.impl("jit_generate", TORCH_BOX(&jit_generate)); }

// Without a tensor among the arguments there is nothing to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(sparsecore, CompositeExplicitAutograd, m) {
  m.impl("jit_nbytes", TORCH_BOX(&jit_nbytes));
  m.impl("jit_free", TORCH_BOX(&jit_free));
}

}  // namespace sparsecore::torch_binding
