#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/depthwise/depthwise_f32.h"

namespace sparsecore {

Kernel<DepthwiseArgs> depthwise_f32_scalar() {
  return make_kernel<DepthwiseF32<Simd>, DepthwiseArgs>("depthwise_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
