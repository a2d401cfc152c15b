// pmaddwd adds two products exactly. pmaddubsw would do four at a time but saturates at full 8-bit weights, and on AMD
// and Intel the exact forms of it (sign tricks) need as many multiply-port operations per product as this.
#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/gemm/gemm_s16s8f32.h"

namespace sparsecore {
namespace {

struct Dot {
  static constexpr int kBlockM = 4, kBlockN = 3;  // 12 accumulators + 3 weights + 1 activation = 16 registers
  static constexpr int64_t kStep = 16;
  using Sum = __m256i;
  using Values = __m256i;

  static SPARSECORE_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static SPARSECORE_INLINE Values load(const int16_t* x) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  }
  static SPARSECORE_INLINE Values widen(const int8_t* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
  static SPARSECORE_INLINE Sum multiply_add(Sum sum, Values a, Values b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  static SPARSECORE_INLINE int32_t reduce_add(Sum a) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
  }
};

}  // namespace

Kernel<GemmInt8Args> gemm_s16s8f32_avx2() {
  return make_kernel<GemmS16S8F32<Simd, Dot>, GemmInt8Args>("gemm_s16s8f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
