#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt")
#include "simd/avx2.h"
#include "simd/lookup_avx2.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {
namespace {

struct Dot : LookupAvx2 {
  struct Cursor {};  // places are columns
  static SPARSECORE_INLINE Cursor first_cursor() { return {}; }
  static SPARSECORE_INLINE Bytes columns(Bytes slots, Cursor&) {
    return _mm256_and_si256(slots, _mm256_set1_epi8(0x0f));
  }
  // As they are, by a shuffle: 255 * -8 twice fits in int16, 16 times that does not.
  static SPARSECORE_INLINE Bytes values(Bytes slots) {
    const Bytes high = _mm256_and_si256(_mm256_srli_epi16(slots, 4), _mm256_set1_epi8(0x0f));
    const __m128i of = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(of), high);
  }
  static SPARSECORE_INLINE void store_sum(int32_t* p, Sum sum) { store(p, sum); }
};

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_avx2() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, Dot>>, LookupInt4Args>("lookup_u8s4_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
