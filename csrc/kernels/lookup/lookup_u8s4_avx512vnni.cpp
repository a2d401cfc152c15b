#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt")
#include "simd/avx512.h"
#include "simd/lookup_avx512vnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {
namespace {

struct Dot : LookupVnni {
  struct Cursor {};  // places are columns
  static SPARSECORE_INLINE Cursor first_cursor() { return {}; }
  static SPARSECORE_INLINE Bytes columns(Bytes slots, Cursor&) {
    return _mm512_and_si512(slots, _mm512_set1_epi8(0x0f));
  }
  // 16 times each: the high half of a byte as it is.
  static SPARSECORE_INLINE Bytes values(Bytes slots) { return _mm512_and_si512(slots, _mm512_set1_epi8(char(0xf0))); }
  static SPARSECORE_INLINE void store_sum(int32_t* p, Sum sum) { store(p, _mm512_srai_epi32(sum, 4)); }
};

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_avx512vnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, Dot>>, LookupInt4Args>("lookup_u8s4_avx512vnni",
                                                                              Isa::kAvx512Vnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
