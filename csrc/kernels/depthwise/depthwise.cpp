// The table of depthwise. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<DepthwiseArgs> depthwise_f32_avx512();
Kernel<DepthwiseArgs> depthwise_f32_avx2();
Kernel<DepthwiseArgs> depthwise_f32_neon();
Kernel<DepthwiseArgs> depthwise_f32_scalar();

std::span<const Kernel<DepthwiseArgs>> depthwise_kernels() {
  static const Kernel<DepthwiseArgs> table[] = {
#if defined(__x86_64__)
      depthwise_f32_avx512(),
      depthwise_f32_avx2(),
#elif defined(__aarch64__)
      depthwise_f32_neon(),
#endif
      depthwise_f32_scalar(),
  };
  return table;
}

}  // namespace sparsecore
