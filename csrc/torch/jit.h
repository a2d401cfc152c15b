// Programs of weights, which Python knows by a number; 0 stands for none.
#pragma once

#include "sparsecore/views.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// Of a convolution; 0 x 0 of a product, which programs for filters of 1 x 1 compute too.
struct Filter {
  int64_t h = 0, w = 0;
};

// The program of that number, which a recording that is being made keeps alive. The error says if it was generated
// from a weight of another size than these tensors', or for another filter.
JitView jit_view(int64_t program, const Tensor& row_ptr, const Tensor& col_idx, Filter filter = {});

}  // namespace sparsecore::torch_binding
