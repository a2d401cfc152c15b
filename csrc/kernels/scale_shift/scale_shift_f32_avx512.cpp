#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "simd/avx512.h"
// The algorithm text needs the wrapper before it.
#include "kernels/scale_shift/scale_shift_f32.h"

namespace sparsecore {

Kernel<ScaleShiftArgs> scale_shift_f32_avx512() {
  return make_kernel<ScaleShiftF32<Simd>, ScaleShiftArgs>("scale_shift_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
