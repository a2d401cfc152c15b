#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/conv2d/conv2d_panel_f32.h"

namespace sparsecore {

Kernel<Conv2dPanelArgs> conv2d_panel_f32_neon() {
  return make_kernel<Conv2dPanelF32<Simd>, Conv2dPanelArgs>("conv2d_panel_f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
