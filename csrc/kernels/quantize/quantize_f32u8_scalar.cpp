#include "simd/scalar.h"
// The algorithm text needs the wrapper before it.
#include "kernels/quantize/quantize.h"

namespace sparsecore {

Kernel<QuantizeArgs> quantize_f32u8_scalar() {
  return make_kernel<Quantize<Simd>, QuantizeArgs>("quantize_f32u8_scalar", Isa::kScalar);
}

}  // namespace sparsecore
