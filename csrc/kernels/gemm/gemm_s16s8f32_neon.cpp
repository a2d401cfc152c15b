#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/gemm/gemm_s16s8f32.h"

namespace sparsecore {
namespace {

struct Dot {
  static constexpr int kBlockM = 4, kBlockN = 4;  // 16 accumulators + 4 weights + activations of 32 registers
  static constexpr int64_t kStep = 8;
  using Sum = int32x4_t;
  using Values = int16x8_t;

  static SPARSECORE_INLINE Sum zero() { return vdupq_n_s32(0); }
  static SPARSECORE_INLINE Values load(const int16_t* x) { return vld1q_s16(x); }
  static SPARSECORE_INLINE Values widen(const int8_t* w) { return vmovl_s8(vld1_s8(w)); }
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Values a, Values b) {
    return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b)), a, b);
  }
  static SPARSECORE_INLINE int32_t reduce_add(Sum sum) { return vaddvq_s32(sum); }
};

}  // namespace

Kernel<GemmInt8Args> gemm_s16s8f32_neon() {
  return make_kernel<GemmS16S8F32<Simd, Dot>, GemmInt8Args>("gemm_s16s8f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
