#include "simd/neon.h"
// The text needs a wrapper before it.
#include "simd/wrapper_text.h"

namespace sparsecore::test {

Wrapper wrapper_neon() { return WrapperText<Simd>::table(Isa::kNeon); }

}  // namespace sparsecore::test
