#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt")
#include "simd/avx512.h"
#include "simd/dot_avx512vnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {
namespace {

// For machines without VBMI: byte shuffles reach 16 columns.
struct Dot : DotVnni {
  static constexpr int kPositions = 16;
  static constexpr int64_t kTable = 16;
  static constexpr bool kNeedsSafePairs = false;
  using Table = Bytes;
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm512_shuffle_epi8(table, columns); }
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_avx512vnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<Dot>>, LookupInt8Args>("lookup_u8s8_avx512vnni", Isa::kAvx512Vnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
