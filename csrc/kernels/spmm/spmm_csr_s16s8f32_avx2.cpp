// int8 CSR x int16 activations. A tile of rows of x is transposed to [K][W]; two entries of a weight row are taken
// together, because pmaddwd multiplies pairs:
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
#include "kernels/tile.h"

namespace sparsecore {
namespace {

constexpr int kWide = 16;           // int16 columns of one vector
constexpr int kMaxWideVectors = 4;  // 8 accumulators
constexpr int64_t kInt8TileBytes = 384 * 1024;

SPARSECORE_INLINE int tile_vectors(const SpmmInt8Args& args) {
  const int64_t bytes_per_vector = kWide * int64_t(sizeof(int16_t)) * (args.weight.cols + 1);
  const int64_t limit = smaller(larger(kInt8TileBytes / bytes_per_vector, 1), kMaxWideVectors);
  return balanced_vectors(divide_up(args.M, kWide), limit);
}

void pack_tile(const SpmmInt8Args& args, int64_t begin, int64_t width, int64_t W, int16_t* tile) {
  for (int64_t k = 0; k < args.weight.cols; ++k) {
    for (int64_t i = 0; i < width; ++i) tile[k * W + i] = args.x[(begin + i) * args.ldx + k];
    for (int64_t i = width; i < W; ++i) tile[k * W + i] = 0;
  }
}

template <int V>
SPARSECORE_INLINE void multiply_row_int8(const CsrView<int8_t>& weight, int64_t n, const int16_t* tile,
                                         __m256i (&acc)[2 * V]) {
  constexpr int64_t W = V * kWide;
  SPARSECORE_UNROLL
  for (int j = 0; j < 2 * V; ++j) acc[j] = _mm256_setzero_si256();
  const auto load = [&](int32_t k, int j) SPARSECORE_LAMBDA_INLINE {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + k * W + j * kWide));
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
}

template <int V>
void run_tile(const SpmmInt8Args& args, Range rows, int64_t begin, int64_t width, const int16_t* tile,
              const float* x_scale, float* out) {
  constexpr int64_t W = V * kWide;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    __m256i acc_i32[2 * V];
    multiply_row_int8<V>(args.weight, n, tile, acc_i32);
    const __m256 scale = Simd::set1(args.weight_scale[n]);
    Simd::F32 acc[2 * V];
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) {
      const __m256i lo = acc_i32[2 * j], hi = acc_i32[2 * j + 1];
      acc[2 * j] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x20));
      acc[2 * j + 1] = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x31));
    }
    SPARSECORE_UNROLL
    for (int j = 0; j < 2 * V; ++j) acc[j] = Simd::mul(acc[j], Simd::mul(Simd::load(x_scale + 8 * j), scale));
    apply_epilogue<Simd, 2 * V>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
    const int64_t slot = (n - rows.begin) % Simd::kLanes;
    SPARSECORE_UNROLL
    for (int j = 0; j < 2 * V; ++j) Simd::store(out + slot * W + 8 * j, acc[j]);
    if (slot == Simd::kLanes - 1 || n + 1 == rows.end) {
      transpose_block<Simd>(out, W, slot + 1, width, args.y + begin * args.ldy + n - slot, args.ldy);
    }
  }
}

// One row of x: nothing to share between columns, so plain dot products over the entries.
void run_dot(const SpmmInt8Args& args, Range rows) {
  const CsrView<int8_t>& weight = args.weight;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int32_t acc_i32[4] = {};
    int64_t i = weight.row_ptr[n];
    const int64_t end = weight.row_ptr[n + 1];
    for (; i + 4 <= end; i += 4) {
      SPARSECORE_UNROLL
      for (int u = 0; u < 4; ++u) acc_i32[u] += args.x[weight.col_idx[i + u]] * weight.values[i + u];
    }
    for (; i < end; ++i) acc_i32[0] += args.x[weight.col_idx[i]] * weight.values[i];
    const int32_t total = acc_i32[0] + acc_i32[1] + acc_i32[2] + acc_i32[3];
    args.y[n] = float(total) * (args.x_scale[0] * args.weight_scale[n]) + args.epilogue.bias_of(n);
  }
  activate_row<Simd>(args.y + rows.begin, rows.size(), args.epilogue.activation);
}

struct SpmmInt8Avx2 {
  static bool supports(const SpmmInt8Args&) { return true; }

  static int64_t num_tiles(const SpmmInt8Args& args) {
    return args.M == 0 ? 0 : divide_up(args.M, tile_vectors(args) * kWide);
  }

  // [ L rows of output, float | scales of the tile, float | tile, int16 ]
  static int64_t scratch_bytes(const SpmmInt8Args& args) {
    const int64_t W = tile_vectors(args) * kWide;
    return (Simd::kLanes + 1) * W * int64_t(sizeof(float)) + args.weight.cols * W * int64_t(sizeof(int16_t));
  }

  static void run(const SpmmInt8Args& args, Range rows, Range tiles, void* scratch) {
    if (args.M == 1) return run_dot(args, rows);
    const int vectors = tile_vectors(args);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * vectors * kWide;
      const int64_t width = smaller(vectors * kWide, args.M - begin);
      with_vectors<kMaxWideVectors>(static_cast<int>(divide_up(width, kWide)), [&](auto count) {
        constexpr int V = decltype(count)::value;
        constexpr int64_t W = V * kWide;
        float* out = static_cast<float*>(scratch);
        float* x_scale = out + Simd::kLanes * W;
        int16_t* tile = reinterpret_cast<int16_t*>(x_scale + W);
        copy_numbers<Simd>(args.x_scale + begin, x_scale, width);
        fill_zero(x_scale + width, W - width);
        pack_tile(args, begin, width, W, tile);
        run_tile<V>(args, rows, begin, width, tile, x_scale, out);
      });
    }
  }
};

}  // namespace

Kernel<SpmmInt8Args> spmm_csr_s16s8f32_avx2() {
  return make_kernel<SpmmInt8Avx2, SpmmInt8Args>("spmm_csr_s16s8f32_avx2", Isa::kAvx2);
}

}  // namespace sparsecore
SPARSECORE_TARGET_END
