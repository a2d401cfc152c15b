#include <cmath>

#include "kernels/quantize/quantize_f32s16.h"

namespace sparsecore {
namespace {

struct Rows {
  static float max_abs(const float* x, int64_t n) {
    float result = 0.0f;
    for (int64_t k = 0; k < n; ++k) {
      const float a = std::fabs(x[k]);
      if (!(a <= result)) result = a;
      if (std::isnan(a)) return a;
    }
    return result;
  }

  static void to_s16(const float* x, int64_t n, float scale, int32_t zero_point, int16_t* out) {
    const float low = float(-128 - zero_point), high = float(127 - zero_point);
    for (int64_t k = 0; k < n; ++k) {
      const float q = std::nearbyint(x[k] / scale);
      out[k] = std::isnan(q) ? int16_t(0) : static_cast<int16_t>(q < low ? low : q > high ? high : q);
    }
  }
};

}  // namespace

Kernel<QuantizeArgs> quantize_f32s16_scalar() {
  return make_kernel<QuantizeF32S16<Rows>, QuantizeArgs>("quantize_f32s16_scalar", Isa::kScalar);
}

}  // namespace sparsecore
