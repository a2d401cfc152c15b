#include "kernels/quantize/quantize_f32s16.h"
#include "simd/neon.h"

namespace sparsecore {
namespace {

struct Rows {
  static float max_abs(const float* x, int64_t n) {
    // As integers, absolute values order like floats with infinity above all finite and NaN above infinity.
    uint32x4_t result = vdupq_n_u32(0);
    for (int64_t k = 0; k < n; k += 4) {
      const float32x4_t a = Simd::load_n(x + k, static_cast<int>(n - k < 4 ? n - k : 4));
      result = vmaxq_u32(result, vreinterpretq_u32_f32(Simd::abs(a)));
    }
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(result))), 0);
  }

  // The conversion gives 0 for NaN.
  static int16x4_t to_s16(float32x4_t x, float32x4_t scale, float32x4_t low, float32x4_t high) {
    const float32x4_t q = Simd::round(Simd::div(x, scale));
    return vmovn_s32(vcvtnq_s32_f32(Simd::min(high, Simd::max(low, q))));
  }

  static void to_s16(const float* x, int64_t n, float scale_1, int32_t zero_point, int16_t* out) {
    const float32x4_t scale = Simd::set1(scale_1);
    const float32x4_t low = Simd::set1(float(-128 - zero_point)), high = Simd::set1(float(127 - zero_point));
    int64_t k = 0;
    for (; k + 4 <= n; k += 4) vst1_s16(out + k, to_s16(Simd::load(x + k), scale, low, high));
    if (k < n) {
      int16_t tail[4];
      vst1_s16(tail, to_s16(Simd::load_n(x + k, static_cast<int>(n - k)), scale, low, high));
      for (int64_t i = 0; k + i < n; ++i) out[k + i] = tail[i];
    }
  }
};

}  // namespace

Kernel<QuantizeArgs> quantize_f32s16_neon() {
  return make_kernel<QuantizeF32S16<Rows>, QuantizeArgs>("quantize_f32s16_neon", Isa::kNeon);
}

}  // namespace sparsecore
