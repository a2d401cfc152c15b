#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_panel_f32.h"

namespace sparsecore {

Kernel<SpmmPanelArgs> spmm_panel_f32_scalar() {
  return make_kernel<SpmmPanelF32<Simd>, SpmmPanelArgs>("spmm_panel_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
