// The tensors of a fragment weight, checked.
#pragma once

#include <vector>

#include "pack/fragment.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// Kernels count tiles, and some past the end, in 32 bits.
inline constexpr int64_t kMaxTiles = int64_t(1) << 30;

// Tensors and sizes as Python's FragmentWeight holds them, in this order: tile_ptr int32, blob uint8, block_ptr int32,
// row_block int32, scale float32 [N] or [0]; N, K, bits of a value, bytes of the largest tile, and the dtype of 16-bit
// values: 0 for others, 1 float16, 2 bfloat16. Shapes and dtypes are checked, not what the arrays hold.
struct FragmentTensors {
  FragmentShape shape;
  int64_t max_tile_bytes;
  int64_t float_type;
  int64_t num_blocks;
};
FragmentTensors fragment_tensors(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

}  // namespace sparsecore::torch_binding
