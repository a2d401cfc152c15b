#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kBlocks = 2, kPositions = 4;
  // Products in int16; no pair of them is added before it is int32.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_neon() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_neon", Isa::kNeon);
}

}  // namespace sparsecore
