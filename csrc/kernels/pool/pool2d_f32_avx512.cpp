#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "simd/avx512.h"
// The algorithm text needs the wrapper before it.
#include "kernels/pool/pool2d_f32.h"

namespace sparsecore {

Kernel<Pool2dArgs> pool2d_f32_avx512() {
  return make_kernel<Pool2dF32<Simd>, Pool2dArgs>("pool2d_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
