// The table of scale and shift. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<ScaleShiftArgs> scale_shift_f32_avx512();
Kernel<ScaleShiftArgs> scale_shift_f32_avx2();
Kernel<ScaleShiftArgs> scale_shift_f32_neon();
Kernel<ScaleShiftArgs> scale_shift_f32_scalar();

std::span<const Kernel<ScaleShiftArgs>> scale_shift_kernels() {
  static const Kernel<ScaleShiftArgs> table[] = {
#if defined(__x86_64__)
      scale_shift_f32_avx512(),
      scale_shift_f32_avx2(),
#elif defined(__aarch64__)
      scale_shift_f32_neon(),
#endif
      scale_shift_f32_scalar(),
  };
  return table;
}

}  // namespace sparsecore
