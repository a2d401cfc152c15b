#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/spmm/spmm_csr_s16s8f32.h"

namespace sparsecore {
namespace {

struct Wide {
  static constexpr int kColumns = 8;
  static constexpr int kMaxVectors = 8;  // 16 accumulators

  template <int V>
  static SPARSECORE_INLINE void multiply_row(const CsrView<int8_t>& weight, int64_t n, const int16_t* tile,
                                             Simd::F32 (&sums)[2 * V]) {
    constexpr int64_t W = V * kColumns;
    int32x4_t acc[2 * V];
    SPARSECORE_UNROLL
    for (int j = 0; j < 2 * V; ++j) acc[j] = vdupq_n_s32(0);
    for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
      const int16x8_t value = vdupq_n_s16(weight.values[i]);
      const int16_t* x = tile + weight.col_idx[i] * W;
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) {
        const int16x8_t a = vld1q_s16(x + j * kColumns);
        acc[2 * j] = vmlal_s16(acc[2 * j], vget_low_s16(a), vget_low_s16(value));
        acc[2 * j + 1] = vmlal_high_s16(acc[2 * j + 1], a, value);
      }
    }
    SPARSECORE_UNROLL
    for (int j = 0; j < 2 * V; ++j) sums[j] = vcvtq_f32_s32(acc[j]);
  }
};

}  // namespace

Kernel<SpmmInt8Args> spmm_csr_s16s8f32_neon() {
  return make_kernel<SpmmCsrS16S8F32<Simd, Wide>, SpmmInt8Args>("spmm_csr_s16s8f32_neon", Isa::kNeon);
}

}  // namespace sparsecore
