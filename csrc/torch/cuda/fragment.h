// The arrays of a fragment weight on the device of x, checked.
#pragma once

#include <vector>

#include "cuda/kernels.h"
#include "torch/fragment.h"

namespace sparsecore::torch_binding {

cuda::FragmentArrays fragment_arrays(const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes,
                                     const Tensor& x);

}  // namespace sparsecore::torch_binding
