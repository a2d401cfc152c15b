// The table of gemm. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<GemmInt8Args> gemm_s16s8f32_avx2();
Kernel<GemmInt8Args> gemm_s16s8f32_neon();
Kernel<GemmInt8Args> gemm_s16s8f32_scalar();

std::span<const Kernel<GemmInt8Args>> gemm_int8_kernels() {
  static const Kernel<GemmInt8Args> table[] = {
#if defined(__x86_64__)
      gemm_s16s8f32_avx2(),
#elif defined(__aarch64__)
      gemm_s16s8f32_neon(),
#endif
      gemm_s16s8f32_scalar(),
  };
  return table;
}

}  // namespace sparsecore
