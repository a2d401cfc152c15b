#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c,popcnt,avxvnni")
#include "simd/avx2.h"
#include "simd/dot_avxvnni.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s8.h"

namespace sparsecore {
namespace {

struct Dot : DotAvxVnni {
  static constexpr int kPositions = 8;
  static constexpr int64_t kTable = 16;
  static constexpr bool kNeedsSafePairs = false;
  using Table = Bytes;
  static SPARSECORE_INLINE Table load_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SPARSECORE_INLINE Bytes lookup(Table table, Bytes columns) { return _mm256_shuffle_epi8(table, columns); }
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_avxvnni() {
  return make_kernel<Int8Kernel<Simd, LookupU8S8<Dot>>, LookupInt8Args>("lookup_u8s8_avxvnni", Isa::kAvxVnni);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
