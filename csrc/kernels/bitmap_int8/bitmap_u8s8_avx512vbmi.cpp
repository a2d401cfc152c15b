// vpexpandb of a register takes half a cycle on Zen 4 (of memory, two): all weights of a vector are loaded first.
#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,avx2,fma,f16c,bmi,bmi2,popcnt")
#include "simd/avx512.h"
#include "simd/dot_avx512vnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/bitmap_int8/bitmap_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotVnni {
  static constexpr int kBlocks = 4, kPositions = 4;  // four chains of counts: one alone takes 3 cycles per vector
  using Mask = uint64_t;
  static SPARSECORE_INLINE Mask load_mask(const uint8_t* p) {
    Mask mask;
    std::memcpy(&mask, p, sizeof(mask));
    return mask;
  }
  static SPARSECORE_INLINE int64_t count(Mask mask) { return static_cast<int64_t>(_mm_popcnt_u64(mask)); }
  static SPARSECORE_INLINE Weights expand(const int8_t* values, Mask mask) {
    return _mm512_maskz_expand_epi8(mask, load(values));
  }
};

}  // namespace

Kernel<BitmapInt8Args> bitmap_u8s8_avx512vbmi() {
  return make_kernel<Int8Kernel<Simd, BitmapU8S8<Dot>>, BitmapInt8Args>("bitmap_u8s8_avx512vbmi", Isa::kAvx512Vbmi);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
