#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/gemm/gemm_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kBlocks = 4, kPositions = 4;  // 16 sums + 4 weights + 1 activation of 32 registers
  // Products in int16; no pair of them is added before it is int32.
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Bytes a, Weights w) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

}  // namespace

Kernel<GemmInt8Args> gemm_u8s8_neon() {
  return make_kernel<Int8Kernel<Simd, GemmU8S8<Dot>>, GemmInt8Args>("gemm_u8s8_neon", Isa::kNeon);
}

}  // namespace sparsecore
