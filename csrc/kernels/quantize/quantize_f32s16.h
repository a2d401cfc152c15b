// Quantizer of activation rows: algorithm text. A wrapper defines Rows with
//   max_abs(x, n): the largest |x|, NaN or infinity if any x is;
//   to_s16(x, n, scale, zero_point, out): clamp(round_half_even(x / scale) + zero_point, -128, 127) - zero_point.
// x / scale is a true division in every kernel, so that all of them give the same integers.
#pragma once

#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

template <class Rows>
struct QuantizeF32S16 {
  static bool supports(const QuantizeArgs&) { return true; }
  static int64_t num_tiles(const QuantizeArgs& args) { return args.M; }
  static int64_t scratch_bytes(const QuantizeArgs&) { return 0; }

  static void run(const QuantizeArgs& args, Range, Range tiles, void*) {
    for (int64_t m = tiles.begin; m < tiles.end; ++m) {
      const float* x = args.x + m * args.ldx;
      int16_t* out = args.out + m * args.ld_out;
      float scale = args.static_scale;
      if (args.is_dynamic) {
        const float max_abs = Rows::max_abs(x, args.K);
        const bool is_finite = max_abs - max_abs == 0.0f;
        // 127 steps below the smallest normal number would be a subnormal or zero scale: such rows count as zero.
        scale = !is_finite ? __builtin_nanf("") : max_abs < 127.0f * 1.17549435e-38f ? 1.0f : max_abs / 127.0f;
      }
      args.scale[m] = scale;
      Rows::to_s16(x, args.K, scale, args.is_dynamic ? 0 : args.zero_point, out);
      for (int64_t k = args.K; k < args.ld_out; ++k) out[k] = 0;
    }
  }
};

}  // namespace
}  // namespace sparsecore
