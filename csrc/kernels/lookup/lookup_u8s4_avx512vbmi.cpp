#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,avx2,fma,f16c,bmi,bmi2,popcnt")
#include "simd/avx512.h"
#include "simd/lookup_avx512vbmi.h"
// The algorithm text needs the wrappers before it.
#include "kernels/lookup/lookup_u8s4.h"

namespace sparsecore {
namespace {

// Places are distances: columns are their running sums in each lane, 4 at a time and from the last of the 4 before.
template <class Base, int kMostPositions>
struct Distances : Base {
  static constexpr int kPositions = kMostPositions;
  using Sum = typename Base::Sum;
  using Bytes = typename Base::Bytes;
  using Cursor = Bytes;  // the columns if all distances were the smallest, 1

  static SPARSECORE_INLINE Cursor first_cursor() { return _mm512_set1_epi32(0x03020100); }
  static SPARSECORE_INLINE Bytes columns(Bytes slots, Cursor& cursor) {
    const Bytes more = _mm512_and_si512(slots, _mm512_set1_epi8(0x0f));
    // A product with 1 + 2^8 + 2^16 + 2^24 sums bytes up; 4 times 15 never carries. The compiler must not see the
    // number: it would make shifts of it, which wait for the ports that byte permutations take.
    Bytes ones = _mm512_set1_epi32(0x01010101);
    asm("" : "+v"(ones));
    const Bytes columns = _mm512_add_epi8(_mm512_mullo_epi32(more, ones), cursor);
    const Bytes last = _mm512_set4_epi32(0x0f0f0f0f, 0x0b0b0b0b, 0x07070707, 0x03030303);
    cursor = _mm512_add_epi8(_mm512_shuffle_epi8(columns, last), _mm512_set1_epi32(0x04030201));
    return columns;
  }
  // 16 times each: the high half of a byte as it is.
  static SPARSECORE_INLINE Bytes values(Bytes slots) { return _mm512_and_si512(slots, _mm512_set1_epi8(char(0xf0))); }
  static SPARSECORE_INLINE void store_sum(int32_t* p, Sum sum) { Base::store(p, _mm512_srai_epi32(sum, 4)); }
};

// 16 positions, with tables from memory, took 1.2 times as long as twice 8.
using Dot = Distances<LookupVbmi, 8>;
using WideDot = Distances<LookupVbmiWide, 4>;

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_avx512vbmi() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, Dot>>, LookupInt4Args>("lookup_u8s4_avx512vbmi",
                                                                              Isa::kAvx512Vbmi);
}
Kernel<LookupInt4Args> lookup256_u8s4_avx512vbmi() {
  return make_kernel<Int8Kernel<Simd, LookupU8S4<Simd, WideDot>>, LookupInt4Args>("lookup256_u8s4_avx512vbmi",
                                                                                  Isa::kAvx512Vbmi);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
