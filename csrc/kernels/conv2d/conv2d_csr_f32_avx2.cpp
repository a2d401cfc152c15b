#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_csr_f32.h"

namespace sparsecore {

Kernel<Conv2dArgs> conv2d_csr_f32_avx2() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dArgs>, Conv2dArgs>("conv2d_csr_f32_avx2", Isa::kAvx2);
}

Kernel<Conv2dBlockArgs> conv2d_block_f32_avx2() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dBlockArgs>, Conv2dBlockArgs>("conv2d_block_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
