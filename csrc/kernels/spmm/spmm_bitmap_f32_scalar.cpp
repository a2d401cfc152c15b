#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_bitmap_f32.h"

namespace sparsecore {

Kernel<SpmmBitmapArgs> spmm_bitmap_f32_scalar() {
  return make_kernel<SpmmBitmapF32<Simd>, SpmmBitmapArgs>("spmm_bitmap_f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
