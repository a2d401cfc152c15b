// The table of conv2d. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<Conv2dJitArgs> conv2d_jit_f32_avx512();
Kernel<Conv2dPanelArgs> conv2d_panel_f32_avx512();
Kernel<Conv2dPanelArgs> conv2d_panel_f32_avx2();
Kernel<Conv2dPanelArgs> conv2d_panel_f32_neon();
Kernel<Conv2dPanelArgs> conv2d_panel_f32_scalar();
Kernel<Conv2dBlockArgs> conv2d_block_f32_avx512();
Kernel<Conv2dBlockArgs> conv2d_block_f32_avx2();
Kernel<Conv2dBlockArgs> conv2d_block_f32_neon();
Kernel<Conv2dBlockArgs> conv2d_block_f32_scalar();
Kernel<Conv2dArgs> conv2d_csr_f32_avx512();
Kernel<Conv2dArgs> conv2d_csr_f32_avx2();
Kernel<Conv2dArgs> conv2d_csr_f32_neon();
Kernel<Conv2dArgs> conv2d_csr_f32_scalar();

std::span<const Kernel<Conv2dArgs>> conv2d_kernels() {
  static const Kernel<Conv2dArgs> table[] = {
#if defined(__x86_64__)
      conv2d_csr_f32_avx512(),
      conv2d_csr_f32_avx2(),
#elif defined(__aarch64__)
      conv2d_csr_f32_neon(),
#endif
      conv2d_csr_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<Conv2dBlockArgs>> conv2d_block_kernels() {
  static const Kernel<Conv2dBlockArgs> table[] = {
#if defined(__x86_64__)
      conv2d_block_f32_avx512(),
      conv2d_block_f32_avx2(),
#endif
#if defined(__aarch64__)
      conv2d_block_f32_neon(),
#endif
      conv2d_block_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<Conv2dPanelArgs>> conv2d_panel_kernels() {
  static const Kernel<Conv2dPanelArgs> table[] = {
#if defined(__x86_64__)
      conv2d_panel_f32_avx512(),
      conv2d_panel_f32_avx2(),
#elif defined(__aarch64__)
      conv2d_panel_f32_neon(),
#endif
      conv2d_panel_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<Conv2dJitArgs>> conv2d_jit_kernels() {
#if defined(__x86_64__)
  static const Kernel<Conv2dJitArgs> table[] = {conv2d_jit_f32_avx512()};
  return table;
#else
  return {};
#endif
}

}  // namespace sparsecore
