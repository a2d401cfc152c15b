#include <immintrin.h>

#include <cstring>

#include "simd/target.h"
#include "sparsecore/codebook.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")
#include "simd/avx512.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_codebook_f32.h"

namespace sparsecore {

Kernel<SpmmCodebookArgs> spmm_codebook_f32_avx512() {
  return make_kernel<SpmmCodebookF32<Simd>, SpmmCodebookArgs>("spmm_codebook_f32_avx512", Isa::kAvx512);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
