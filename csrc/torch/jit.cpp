// torch.ops.sparsecore.jit_generate, jit_nbytes and jit_free. The products are in spmm.cpp and conv2d.cpp.
#include "torch/jit.h"

#include <torch/csrc/stable/library.h>

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

int64_t jit_generate(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  check_tensor(values, "values", ScalarType::Float, 1);
  auto program = JitProgram::generate(validated_view<float>(row_ptr, col_idx, values, cols));
  return program == nullptr ? 0 : programs().add(std::move(program));
}

int64_t jit_nbytes(int64_t program) { return programs().find(program)->nbytes(); }

void jit_free(int64_t program) { programs().erase(program); }

}  // namespace

JitView jit_view(int64_t number, const Tensor& row_ptr, const Tensor& col_idx) {
  std::shared_ptr<const JitProgram> program = programs().find(number);
  const JitView view = program->view();
  check(row_ptr.numel() == view.rows + 1 && col_idx.numel() == view.nnz,
        "expected the program of this weight, got that of one with ", view.rows, " rows and ", view.nnz, " entries");
  if (Recording* recording = active_recording()) recording->keep(std::move(program));
  return view;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("jit_generate(Tensor row_ptr, Tensor col_idx, Tensor values, int cols) -> int");
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
