#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kPositions = 8;
  static constexpr bool kNeedsSafePairs = false;
  // Products in int16; no pair of them is added before it is int32.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_neon() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<Dot>>, LookupInt8Args>("lookup_u8s8_neon", Isa::kNeon);
}

}  // namespace sparsecore
