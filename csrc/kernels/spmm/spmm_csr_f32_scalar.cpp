#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_csr_f32.h"

namespace sparsecore {

Kernel<SpmmArgs> spmm_csr_f32_scalar() {
  return make_kernel<SpmmCsrF32<Simd, SpmmArgs>, SpmmArgs>("spmm_csr_f32_scalar", Isa::kScalar);
}

Kernel<SpmmBlockArgs> spmm_block_f32_scalar() {
  return make_kernel<SpmmCsrF32<Simd, SpmmBlockArgs>, SpmmBlockArgs>("spmm_block_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
