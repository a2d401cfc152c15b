#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs the wrapper before it.
#include "kernels/pool/pool2d_f32.h"

namespace sparsecore {

Kernel<Pool2dArgs> pool2d_f32_avx2() { return make_kernel<Pool2dF32<Simd>, Pool2dArgs>("pool2d_f32_avx2", Isa::kAvx2); }

}  // namespace sparsecore
SPARSECORE_TARGET_END
