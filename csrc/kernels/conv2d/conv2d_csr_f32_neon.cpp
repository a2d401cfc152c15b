#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_csr_f32.h"

namespace sparsecore {

Kernel<Conv2dArgs> conv2d_csr_f32_neon() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dArgs>, Conv2dArgs>("conv2d_csr_f32_neon", Isa::kNeon);
}

Kernel<Conv2dBlockArgs> conv2d_block_f32_neon() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dBlockArgs>, Conv2dBlockArgs>("conv2d_block_f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
