#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_planes_f32.h"

namespace sparsecore {

Kernel<SpmmPlanesArgs> spmm_planes_f32_scalar() {
  return make_kernel<SpmmPlanesF32<Simd>, SpmmPlanesArgs>("spmm_planes_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
