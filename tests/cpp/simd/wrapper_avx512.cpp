#include <immintrin.h>

#include "simd/target.h"
#include "simd/wrapper.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "simd/avx512.h"
// The text needs a wrapper before it.
#include "simd/wrapper_text.h"

namespace sparsecore::test {

Wrapper wrapper_avx512() { return WrapperText<Simd>::table(Isa::kAvx512); }

}  // namespace sparsecore::test
SPARSECORE_TARGET_END
