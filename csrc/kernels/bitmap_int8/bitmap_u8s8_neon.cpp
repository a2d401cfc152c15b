#include "simd/dot_neon.h"
#include "simd/neon.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotNeon {
  static constexpr int kBlocks = 2, kPositions = 4;
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_neon() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_neon", Isa::kNeon);
}

}  // namespace sparsecore
