#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs the wrapper before it.
#include "kernels/quantize/quantize.h"

namespace sparsecore {

Kernel<QuantizeArgs> quantize_f32u8_avx2() {
  return make_kernel<Quantize<Simd>, QuantizeArgs>("quantize_f32u8_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
