#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt")
#include "simd/avx2.h"
#include "simd/dot_avx2.h"
#include "simd/expand.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotAvx2 {
  static constexpr int kBlocks = 1, kPositions = 4;  // 8 sums + 2 weights + activations of 16 registers
  using Mask = uint32_t;
  static SPARSECORE_INLINE Mask load_mask(const uint8_t* p) {
    Mask mask;
    std::memcpy(&mask, p, sizeof(mask));
    return mask;
  }
  static SPARSECORE_INLINE int64_t count(Mask mask) { return _mm_popcnt_u32(mask); }
  static SPARSECORE_INLINE Weights expand(const int8_t* values, Mask mask) {
    const __m256i bytes = expand_32(values, mask);
    return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1))};
  }
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_avx2() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
