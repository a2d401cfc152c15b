// The tensors of a delta weight, checked.
#pragma once

#include <vector>

#include "pack/delta.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// Tensors and sizes as Python's DeltaWeight holds them, in this order: quad_ptr int32, codes uint8, values float16,
// bfloat16 or int8, block_ptr int32, scale float32 [N] with int8, else [0]; N and K. Shapes and dtypes are checked, not
// what the arrays hold.
struct DeltaTensors {
  DeltaShape shape;
  int64_t quads;
  int64_t num_blocks;
};
DeltaTensors delta_tensors(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

// Whether a weight of that size can be packed: units are counted in 32 bits.
void check_delta_shape(const DeltaShape& shape);

}  // namespace sparsecore::torch_binding
