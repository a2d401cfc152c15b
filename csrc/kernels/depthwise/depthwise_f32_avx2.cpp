#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/depthwise/depthwise_f32.h"

namespace sparsecore {

Kernel<DepthwiseArgs> depthwise_f32_avx2() {
  return make_kernel<DepthwiseF32<Simd>, DepthwiseArgs>("depthwise_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
