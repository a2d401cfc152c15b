// The table of the dense int8 product. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<GemmInt8Args> gemm_u8s8_avx512vnni();
Kernel<GemmInt8Args> gemm_u8s8_avxvnni();
Kernel<GemmInt8Args> gemm_u8s8_avx2();
Kernel<GemmInt8Args> gemm_u8s8_neondot();
Kernel<GemmInt8Args> gemm_u8s8_neon();
Kernel<GemmInt8Args> gemm_u8s8_scalar();

std::span<const Kernel<GemmInt8Args>> gemm_int8_kernels() {
  static const Kernel<GemmInt8Args> table[] = {
#if defined(__x86_64__)
      gemm_u8s8_avx512vnni(),
      gemm_u8s8_avxvnni(),
      gemm_u8s8_avx2(),
#elif defined(__aarch64__)
      gemm_u8s8_neondot(),
      gemm_u8s8_neon(),
#endif
      gemm_u8s8_scalar(),
  };
  return table;
}

}  // namespace sparsecore
