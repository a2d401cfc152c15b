#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_codebook_f32.h"

namespace sparsecore {

Kernel<SpmmCodebookArgs> spmm_codebook_f32_scalar() {
  return make_kernel<SpmmCodebookF32<Simd>, SpmmCodebookArgs>("spmm_codebook_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
