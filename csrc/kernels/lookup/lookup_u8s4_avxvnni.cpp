#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#include "simd/avx2.h"
#include "simd/lookup_avxvnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {
namespace {

struct Dot : LookupAvxVnni {
  struct Cursor {};  // places are columns
  static SPARSECORE_INLINE Cursor first_cursor() { return {}; }
  static SPARSECORE_INLINE Bytes columns(Bytes slots, Cursor&) {
    return _mm256_and_si256(slots, _mm256_set1_epi8(0x0f));
  }
  // 16 times each: the high half of a byte as it is.
  static SPARSECORE_INLINE Bytes values(Bytes slots) { return _mm256_and_si256(slots, _mm256_set1_epi8(char(0xf0))); }
  static SPARSECORE_INLINE void store_sum(int32_t* p, Sum sum) { store(p, _mm256_srai_epi32(sum, 4)); }
};

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_avxvnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, Dot>>, LookupInt4Args>("lookup_u8s4_avxvnni", Isa::kAvxVnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
