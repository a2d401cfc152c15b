// The tables of spmm, one for each format of the weight. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<SpmmJitArgs> spmm_jit_f32_avx512();
Kernel<SpmmPanelArgs> spmm_panel_f32_avx512();
Kernel<SpmmPanelArgs> spmm_panel_f32_avx2();
Kernel<SpmmPanelArgs> spmm_panel_f32_neon();
Kernel<SpmmPanelArgs> spmm_panel_f32_scalar();
Kernel<SpmmBitmapArgs> spmm_bitmap_f32_avx512();
Kernel<SpmmBitmapArgs> spmm_bitmap_f32_avx2();
Kernel<SpmmBitmapArgs> spmm_bitmap_f32_neon();
Kernel<SpmmBitmapArgs> spmm_bitmap_f32_scalar();
Kernel<SpmmPlanesArgs> spmm_planes_f32_avx512();
Kernel<SpmmPlanesArgs> spmm_planes_f32_avx2();
Kernel<SpmmPlanesArgs> spmm_planes_f32_neon();
Kernel<SpmmPlanesArgs> spmm_planes_f32_scalar();
Kernel<SpmmBlockArgs> spmm_block_f32_avx512();
Kernel<SpmmBlockArgs> spmm_block_f32_avx2();
Kernel<SpmmBlockArgs> spmm_block_f32_neon();
Kernel<SpmmBlockArgs> spmm_block_f32_scalar();
Kernel<SpmmArgs> spmm_csr_f32_avx512();
Kernel<SpmmArgs> spmm_csr_f32_avx2();
Kernel<SpmmArgs> spmm_csr_f32_neon();
Kernel<SpmmArgs> spmm_csr_f32_scalar();

std::span<const Kernel<SpmmArgs>> spmm_kernels() {
  static const Kernel<SpmmArgs> table[] = {
#if defined(__x86_64__)
      spmm_csr_f32_avx512(),
      spmm_csr_f32_avx2(),
#elif defined(__aarch64__)
      spmm_csr_f32_neon(),
#endif
      spmm_csr_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<SpmmBlockArgs>> spmm_block_kernels() {
  static const Kernel<SpmmBlockArgs> table[] = {
#if defined(__x86_64__)
      spmm_block_f32_avx512(),
      spmm_block_f32_avx2(),
#endif
#if defined(__aarch64__)
      spmm_block_f32_neon(),
#endif
      spmm_block_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<SpmmPanelArgs>> spmm_panel_kernels() {
  static const Kernel<SpmmPanelArgs> table[] = {
#if defined(__x86_64__)
      spmm_panel_f32_avx512(),
      spmm_panel_f32_avx2(),
#elif defined(__aarch64__)
      spmm_panel_f32_neon(),
#endif
      spmm_panel_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<SpmmBitmapArgs>> spmm_bitmap_kernels() {
  static const Kernel<SpmmBitmapArgs> table[] = {
#if defined(__x86_64__)
      spmm_bitmap_f32_avx512(),
      spmm_bitmap_f32_avx2(),
#elif defined(__aarch64__)
      spmm_bitmap_f32_neon(),
#endif
      spmm_bitmap_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<SpmmPlanesArgs>> spmm_planes_kernels() {
  static const Kernel<SpmmPlanesArgs> table[] = {
#if defined(__x86_64__)
      spmm_planes_f32_avx512(),
      spmm_planes_f32_avx2(),
#elif defined(__aarch64__)
      spmm_planes_f32_neon(),
#endif
      spmm_planes_f32_scalar(),
  };
  return table;
}

std::span<const Kernel<SpmmJitArgs>> spmm_jit_kernels() {
#if defined(__x86_64__)
  static const Kernel<SpmmJitArgs> table[] = {spmm_jit_f32_avx512()};
  return table;
#else
  return {};
#endif
}

}  // namespace sparsecore
