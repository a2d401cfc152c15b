#include "simd/scalar.h"
// The algorithm text needs the wrapper before it.
#include "kernels/pool/pool2d_f32.h"

namespace sparsecore {

Kernel<Pool2dArgs> pool2d_f32_scalar() {
  return make_kernel<Pool2dF32<Simd>, Pool2dArgs>("pool2d_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
