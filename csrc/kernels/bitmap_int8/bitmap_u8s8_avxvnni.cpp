#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#include "simd/avx2.h"
#include "simd/dot_avxvnni.h"
#include "simd/expand.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotAvxVnni {
  static constexpr int kBlocks = 2, kPositions = 4;
  using Mask = uint32_t;
  static SPARSECORE_INLINE Mask load_mask(const uint8_t* p) {
    Mask mask;
    std::memcpy(&mask, p, sizeof(mask));
    return mask;
  }
  static SPARSECORE_INLINE int64_t count(Mask mask) { return _mm_popcnt_u32(mask); }
  static SPARSECORE_INLINE Weights expand(const int8_t* values, Mask mask) { return expand_32(values, mask); }
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_avxvnni() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_avxvnni", Isa::kAvxVnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
