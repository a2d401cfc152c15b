// Dot products of int16 activations with int8 weights that are widened on the way in: pmaddwd adds two products
// exactly. pmaddubsw would do four at a time but saturates at full 8-bit weights, and on AMD and Intel the exact
// forms of it (sign tricks) need as many multiply-port operations per product as this.
#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/tile.h"

namespace sparsecore {
namespace {

constexpr int64_t kTileRows = 64;        // rows of x per tile: with K = 4096 they fill half of a 1 MB cache
constexpr int kBlockM = 4, kBlockN = 3;  // 12 accumulators + 3 weights + 1 activation = 16 registers
constexpr int64_t kStep = 16;            // values of K per vector

SPARSECORE_INLINE int32_t reduce_add_i32(__m256i a) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

// MxN outputs; every sum is exact, so neither the order nor the block shape shows in the result.
template <int BM, int BN>
SPARSECORE_INLINE void run_block(const GemmInt8Args& args, int64_t m, int64_t n) {
  __m256i acc[BM][BN];
  SPARSECORE_UNROLL
  for (int i = 0; i < BM; ++i) {
    SPARSECORE_UNROLL
    for (int j = 0; j < BN; ++j) acc[i][j] = _mm256_setzero_si256();
  }
  const int16_t* x = args.x + m * args.ldx;
  const int8_t* weight = args.weight + n * args.K;
  const auto accumulate = [&](int64_t k, const int8_t* w, int64_t ldw) SPARSECORE_LAMBDA_INLINE {
    __m256i wide[BN];
    SPARSECORE_UNROLL
    for (int j = 0; j < BN; ++j) {
      wide[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + j * ldw)));
    }
    SPARSECORE_UNROLL
    for (int i = 0; i < BM; ++i) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * args.ldx + k));
      SPARSECORE_UNROLL
      for (int j = 0; j < BN; ++j) acc[i][j] = _mm256_add_epi32(acc[i][j], _mm256_madd_epi16(a, wide[j]));
    }
  };
  int64_t k = 0;
  for (; k + kStep <= args.K; k += kStep) accumulate(k, weight + k, args.K);
  if (k < args.K) {  // rows of x are padded with zeros to a multiple of kStep, rows of the weight are not
    int8_t tail[BN * kStep] = {};
    for (int j = 0; j < BN; ++j) {
      for (int64_t i = 0; k + i < args.K; ++i) tail[j * kStep + i] = weight[j * args.K + k + i];
    }
    accumulate(k, tail, kStep);
  }
  for (int i = 0; i < BM; ++i) {
    for (int j = 0; j < BN; ++j) {
      const float scale = args.x_scale[m + i] * args.weight_scale[n + j];
      args.y[(m + i) * args.ldy + n + j] = float(reduce_add_i32(acc[i][j])) * scale + args.epilogue.bias_of(n + j);
    }
  }
}

template <int BN>
SPARSECORE_INLINE void run_columns(const GemmInt8Args& args, Range m_range, int64_t n) {
  int64_t m = m_range.begin;
  for (; m + kBlockM <= m_range.end; m += kBlockM) run_block<kBlockM, BN>(args, m, n);
  for (; m < m_range.end; ++m) run_block<1, BN>(args, m, n);
}

struct GemmInt8Avx2 {
  static bool supports(const GemmInt8Args& args) { return args.ldx % kStep == 0; }
  static int64_t num_tiles(const GemmInt8Args& args) { return divide_up(args.M, kTileRows); }
  static int64_t scratch_bytes(const GemmInt8Args&) { return 0; }

  static void run(const GemmInt8Args& args, Range rows, Range tiles, void*) {
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Range m_range{t * kTileRows, smaller((t + 1) * kTileRows, args.M)};
      int64_t n = rows.begin;
      for (; n + kBlockN <= rows.end; n += kBlockN) run_columns<kBlockN>(args, m_range, n);
      for (; n < rows.end; ++n) run_columns<1>(args, m_range, n);
      for (int64_t m = m_range.begin; m < m_range.end; ++m) {
        activate_row<Simd>(args.y + m * args.ldy + rows.begin, rows.size(), args.epilogue.activation);
      }
    }
  }
};

}  // namespace

Kernel<GemmInt8Args> gemm_s16s8f32_avx2() {
  return make_kernel<GemmInt8Avx2, GemmInt8Args>("gemm_s16s8f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
