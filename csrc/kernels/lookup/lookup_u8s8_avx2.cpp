#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt")
#include "simd/avx2.h"
#include "simd/lookup_avx2.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {

Kernel<LookupInt8Args> lookup_u8s8_avx2() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<LookupAvx2>>, LookupInt8Args>("lookup_u8s8_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
