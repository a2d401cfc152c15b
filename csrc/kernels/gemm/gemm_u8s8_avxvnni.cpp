#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#include "simd/avx2.h"
#include "simd/dot_avxvnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/gemm/gemm_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotAvxVnni {
  static constexpr int kBlocks = 3, kPositions = 4;  // 12 sums + 3 weights + 1 activation = 16 registers
};

}  // namespace

Kernel<GemmInt8Args> gemm_u8s8_avxvnni() {
  return make_kernel<Int8Kernel<Simd, GemmU8S8<Dot>>, GemmInt8Args>("gemm_u8s8_avxvnni", Isa::kAvxVnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
