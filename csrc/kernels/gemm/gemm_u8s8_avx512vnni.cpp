#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "simd/avx512.h"
#include "simd/dot_avx512vnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/gemm/gemm_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotVnni {
  static constexpr int kBlocks = 3, kPositions = 8;  // 24 sums + 3 weights + 1 activation of 32 registers
};

}  // namespace

Kernel<GemmInt8Args> gemm_u8s8_avx512vnni() {
  return make_kernel<Int8Kernel<Simd, GemmU8S8<Dot>>, GemmInt8Args>("gemm_u8s8_avx512vnni", Isa::kAvx512Vnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
