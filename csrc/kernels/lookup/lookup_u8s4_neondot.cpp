#include <arm_neon.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#include "simd/lookup_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) { return vdotq_s32(sum, a, w); }
};

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_neondot() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, NibblesNeon<Dot>>>, LookupInt4Args>("lookup_u8s4_neondot",
                                                                                           Isa::kNeonDot);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
