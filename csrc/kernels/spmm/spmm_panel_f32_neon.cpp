#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_panel_f32.h"

namespace sparsecore {

Kernel<SpmmPanelArgs> spmm_panel_f32_neon() {
  return make_kernel<SpmmPanelF32<Simd>, SpmmPanelArgs>("spmm_panel_f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
