// The table of pooling. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<Pool2dArgs> pool2d_f32_avx512();
Kernel<Pool2dArgs> pool2d_f32_avx2();
Kernel<Pool2dArgs> pool2d_f32_neon();
Kernel<Pool2dArgs> pool2d_f32_scalar();

std::span<const Kernel<Pool2dArgs>> pool2d_kernels() {
  static const Kernel<Pool2dArgs> table[] = {
#if defined(__x86_64__)
      pool2d_f32_avx512(),
      pool2d_f32_avx2(),
#elif defined(__aarch64__)
      pool2d_f32_neon(),
#endif
      pool2d_f32_scalar(),
  };
  return table;
}

}  // namespace sparsecore
