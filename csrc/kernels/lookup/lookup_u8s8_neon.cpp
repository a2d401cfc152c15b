#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kPositions = 8;
  static constexpr bool kNeedsSafePairs = false;
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_neon() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<Dot>>, LookupInt8Args>("lookup_u8s8_neon", Isa::kNeon);
}

}  // namespace sparsecore
