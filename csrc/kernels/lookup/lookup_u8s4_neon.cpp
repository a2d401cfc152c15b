#include "simd/lookup_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {

Kernel<LookupInt4Args> lookup_u8s4_neon() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, NibblesNeon<DotNeon>>>, LookupInt4Args>("lookup_u8s4_neon",
                                                                                               Isa::kNeon);
}

}  // namespace sparsecore
