#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "simd/avx512.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_jit_f32.h"

namespace sparsecore {

Kernel<SpmmJitArgs> spmm_jit_f32_avx512() {
  return make_kernel<SpmmJitF32<Simd>, SpmmJitArgs>("spmm_jit_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
