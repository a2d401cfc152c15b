#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_csr_f32.h"

namespace sparsecore {

Kernel<SpmmArgs> spmm_csr_f32_neon() {
  return make_kernel<SpmmCsrF32<Simd, SpmmArgs>, SpmmArgs>("spmm_csr_f32_neon", Isa::kNeon);
}

Kernel<SpmmBlockArgs> spmm_block_f32_neon() {
  return make_kernel<SpmmCsrF32<Simd, SpmmBlockArgs>, SpmmBlockArgs>("spmm_block_f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
