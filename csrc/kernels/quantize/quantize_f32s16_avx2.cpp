#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels/quantize/quantize_f32s16.h"
#include "simd/avx2.h"

namespace sparsecore {
namespace {

struct Rows {
  static float max_abs(const float* x, int64_t n) {
    // As integers, absolute values order like floats with infinity above all finite and NaN above infinity.
    const __m256i abs_mask = _mm256_set1_epi32(0x7fffffff);
    __m256i result = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
      const __m256i a = _mm256_and_si256(_mm256_castps_si256(Simd::load(x + k)), abs_mask);
      result = _mm256_max_epi32(result, a);
    }
    if (k < n) {
      const __m256 tail = Simd::load_n(x + k, static_cast<int>(n - k));
      result = _mm256_max_epi32(result, _mm256_and_si256(_mm256_castps_si256(tail), abs_mask));
    }
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(half));
  }

  static __m256i to_s32(__m256 x, __m256 scale, __m256 low, __m256 high) {
    const __m256 q = Simd::round(Simd::div(x, scale));
    const __m256 is_number = _mm256_cmp_ps(q, q, _CMP_ORD_Q);
    return _mm256_cvtps_epi32(_mm256_and_ps(Simd::min(high, Simd::max(low, q)), is_number));
  }

  static __m128i pack_s16(__m256i q) {
    return _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  }

  static void to_s16(const float* x, int64_t n, float scale_1, int32_t zero_point, int16_t* out) {
    const __m256 scale = Simd::set1(scale_1);
    const __m256 low = Simd::set1(float(-128 - zero_point)), high = Simd::set1(float(127 - zero_point));
    int64_t k = 0;
    for (; k + 8 <= n; k += 8) {
      const __m128i q = pack_s16(to_s32(Simd::load(x + k), scale, low, high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), q);
    }
    if (k < n) {
      alignas(16) int16_t tail[8];
      const __m256 last = Simd::load_n(x + k, static_cast<int>(n - k));
      _mm_store_si128(reinterpret_cast<__m128i*>(tail), pack_s16(to_s32(last, scale, low, high)));
      for (int64_t i = 0; k + i < n; ++i) out[k + i] = tail[i];
    }
  }
};

}  // namespace

Kernel<QuantizeArgs> quantize_f32s16_avx2() {
  return make_kernel<QuantizeF32S16<Rows>, QuantizeArgs>("quantize_f32s16_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
