#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_planes_f32.h"

namespace sparsecore {

Kernel<SpmmPlanesArgs> spmm_planes_f32_avx2() {
  return make_kernel<SpmmPlanesF32<Simd>, SpmmPlanesArgs>("spmm_planes_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
