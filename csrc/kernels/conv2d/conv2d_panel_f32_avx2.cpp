#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_panel_f32.h"

namespace sparsecore {

Kernel<Conv2dPanelArgs> conv2d_panel_f32_avx2() {
  return make_kernel<Conv2dPanelF32<Simd>, Conv2dPanelArgs>("conv2d_panel_f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
