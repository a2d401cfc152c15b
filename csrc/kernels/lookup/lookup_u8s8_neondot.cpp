#include <arm_neon.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kPositions = 8;
  static constexpr bool kNeedsSafePairs = false;
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) { return vdotq_s32(sum, a, w); }
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_neondot() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<Dot>>, LookupInt8Args>("lookup_u8s8_neondot", Isa::kNeonDot);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
