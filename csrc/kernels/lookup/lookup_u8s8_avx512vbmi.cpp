#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,avx2,fma,f16c,bmi,bmi2,popcnt")
#include "simd/avx512.h"
#include "simd/lookup_avx512vbmi.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {

Kernel<LookupInt8Args> lookup_u8s8_avx512vbmi() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<LookupVbmi>>, LookupInt8Args>("lookup_u8s8_avx512vbmi",
                                                                               Isa::kAvx512Vbmi);
}
Kernel<LookupInt8Args> lookup256_u8s8_avx512vbmi() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<LookupVbmiWide>>, LookupInt8Args>("lookup256_u8s8_avx512vbmi",
                                                                                   Isa::kAvx512Vbmi);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
