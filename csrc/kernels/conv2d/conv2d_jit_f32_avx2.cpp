#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_jit_f32.h"

namespace sparsecore {

Kernel<Conv2dJitArgs> conv2d_jit_f32_avx2() {
  return make_kernel<Conv2dJitF32<Simd>, Conv2dJitArgs>("conv2d_jit_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
