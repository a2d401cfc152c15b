#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "simd/avx512.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_csr_f32.h"

namespace sparsecore {

Kernel<Conv2dArgs> conv2d_csr_f32_avx512() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dArgs>, Conv2dArgs>("conv2d_csr_f32_avx512", Isa::kAvx512);
}

Kernel<Conv2dBlockArgs> conv2d_block_f32_avx512() {
  return make_kernel<Conv2dCsrF32<Simd, Conv2dBlockArgs>, Conv2dBlockArgs>("conv2d_block_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
