#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#include "simd/avx2.h"
#include "simd/lookup_avxvnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {

Kernel<LookupInt8Args> lookup_u8s8_avxvnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<LookupAvxVnni>>, LookupInt8Args>("lookup_u8s8_avxvnni", Isa::kAvxVnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
