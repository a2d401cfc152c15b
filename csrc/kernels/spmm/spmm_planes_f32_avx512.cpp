#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "simd/avx512.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_planes_f32.h"

namespace sparsecore {

Kernel<SpmmPlanesArgs> spmm_planes_f32_avx512() {
  return make_kernel<SpmmPlanesF32<Simd>, SpmmPlanesArgs>("spmm_planes_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
