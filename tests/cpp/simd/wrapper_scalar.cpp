#include "simd/scalar.h"
// The text needs a wrapper before it.
#include "simd/wrapper_text.h"

namespace sparsecore::test {

Wrapper wrapper_scalar() { return WrapperText<Simd>::table(Isa::kScalar); }

}  // namespace sparsecore::test
