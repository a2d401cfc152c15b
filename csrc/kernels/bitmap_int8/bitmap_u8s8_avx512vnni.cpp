#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt")
#include "simd/avx512.h"
#include "simd/dot_avx512vnni.h"
#include "simd/expand.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotVnni {
  static constexpr int kBlocks = 2, kPositions = 4;
  using Mask = uint64_t;
  static SPARSECORE_INLINE Mask load_mask(const uint8_t* p) {
    Mask mask;
    std::memcpy(&mask, p, sizeof(mask));
    return mask;
  }
  static SPARSECORE_INLINE int64_t count(Mask mask) { return static_cast<int64_t>(_mm_popcnt_u64(mask)); }
  static SPARSECORE_INLINE Weights expand(const int8_t* values, Mask mask) {
    const uint32_t low = static_cast<uint32_t>(mask), high = static_cast<uint32_t>(mask >> 32);
    const __m256i first = expand_32(values, low), second = expand_32(values + _mm_popcnt_u32(low), high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  }
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_avx512vnni() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_avx512vnni", Isa::kAvx512Vnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
