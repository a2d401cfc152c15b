// Programs of weights, which Python knows by a number; 0 stands for none.
#pragma once

#include "sparsecore/views.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// The program of that number, which a recording that is being made keeps alive. The error says if it was generated
// from a weight of another size than these tensors'.
JitView jit_view(int64_t program, const Tensor& row_ptr, const Tensor& col_idx);

}  // namespace sparsecore::torch_binding
