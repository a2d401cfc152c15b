#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt")
#include "simd/avx2.h"
#include "simd/dot_avx2.h"
// The algorithm text needs the wrappers before it.
#include "kernels/gemm/gemm_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotAvx2 {
  static constexpr int kBlocks = 1, kPositions = 4;  // 8 sums + 2 weights + activations of 16 registers
};

}  // namespace

Kernel<GemmInt8Args> gemm_u8s8_avx2() {
  return make_kernel<Int8Kernel<Simd, GemmU8S8<Dot>>, GemmInt8Args>("gemm_u8s8_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
