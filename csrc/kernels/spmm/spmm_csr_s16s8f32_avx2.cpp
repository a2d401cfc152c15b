// Two entries of a weight row are taken together, because pmaddwd multiplies pairs:
//
//   tile row k1   a0 a1 a2 ...   interleaved  a0 b0 a1 b1 ...
//   tile row k2   b0 b1 b2 ...   times        w1 w2 w1 w2 ...   = w1 a0 + w2 b0, w1 a1 + w2 b1, ...  exact in int32
//
// The interleave works inside 128-bit halves, so 16 columns come out as {0-3, 8-11} and {4-7, 12-15}.
#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_csr_s16s8f32.h"

namespace sparsecore {
namespace {

struct Wide {
  static constexpr int kColumns = 16;
  static constexpr int kMaxVectors = 4;  // 8 accumulators

  template <int V>
  static SPARSECORE_INLINE void multiply_row(const CsrView<int8_t>& weight, int64_t n, const int16_t* tile,
                                             Simd::F32 (&sums)[2 * V]) {
    constexpr int64_t W = V * kColumns;
    __m256i acc[2 * V];
    SPARSECORE_UNROLL
    for (int j = 0; j < 2 * V; ++j) acc[j] = _mm256_setzero_si256();
    const auto load = [&](int32_t k, int j) SPARSECORE_LAMBDA_INLINE {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + k * W + j * kColumns));
    };
    const auto accumulate = [&](int j, __m256i a, __m256i b, __m256i pair) SPARSECORE_LAMBDA_INLINE {
      acc[2 * j] = _mm256_add_epi32(acc[2 * j], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
      acc[2 * j + 1] = _mm256_add_epi32(acc[2 * j + 1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
    };
    int64_t i = weight.row_ptr[n];
    const int64_t end = weight.row_ptr[n + 1];
    for (; i + 2 <= end; i += 2) {
      const uint32_t low = static_cast<uint16_t>(int16_t(weight.values[i]));
      const uint32_t high = static_cast<uint16_t>(int16_t(weight.values[i + 1]));
      const __m256i pair = _mm256_set1_epi32(static_cast<int32_t>(low | high << 16));
      const int32_t k1 = weight.col_idx[i], k2 = weight.col_idx[i + 1];
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) accumulate(j, load(k1, j), load(k2, j), pair);
    }
    if (i < end) {
      const __m256i pair = _mm256_set1_epi32(static_cast<uint16_t>(int16_t(weight.values[i])));
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) accumulate(j, load(weight.col_idx[i], j), _mm256_setzero_si256(), pair);
    }
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) {
      const __m256i lo = acc[2 * j], hi = acc[2 * j + 1];
      sums[2 * j] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x20));
      sums[2 * j + 1] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x31));
    }
  }
};

}  // namespace

Kernel<SpmmInt8Args> spmm_csr_s16s8f32_avx2() {
  return make_kernel<SpmmCsrS16S8F32<Simd, Wide>, SpmmInt8Args>("spmm_csr_s16s8f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
