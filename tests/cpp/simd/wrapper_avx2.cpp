#include <immintrin.h>

#include "simd/target.h"
#include "simd/wrapper.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The text needs a wrapper before it.
#include "simd/wrapper_text.h"

namespace sparsecore::test {

Wrapper wrapper_avx2() { return WrapperText<Simd>::table(Isa::kAvx2); }

}  // namespace sparsecore::test
SPARSECORE_TARGET_END
