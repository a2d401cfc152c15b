#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt")
#include "simd/avx512.h"
#include "simd/lookup_avx512vnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {

Kernel<LookupInt8Args> lookup_u8s8_avx512vnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<LookupVnni>>, LookupInt8Args>("lookup_u8s8_avx512vnni",
                                                                               Isa::kAvx512Vnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
