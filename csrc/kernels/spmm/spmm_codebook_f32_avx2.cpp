#include <immintrin.h>

#include <cstring>

#include "simd/target.h"
#include "sparsecore/codebook.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_codebook_f32.h"

namespace sparsecore {

Kernel<SpmmCodebookArgs> spmm_codebook_f32_avx2() {
  return make_kernel<SpmmCodebookF32<Simd>, SpmmCodebookArgs>("spmm_codebook_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
