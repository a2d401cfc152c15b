#include "simd/neon.h"
// The algorithm text needs the wrapper before it.
#include "kernels/scale_shift/scale_shift_f32.h"

namespace sparsecore {

Kernel<ScaleShiftArgs> scale_shift_f32_neon() {
  return make_kernel<ScaleShiftF32<Simd>, ScaleShiftArgs>("scale_shift_f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
