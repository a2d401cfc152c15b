#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "simd/activation.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

struct GemmInt8Scalar {
  static bool supports(const GemmInt8Args&) { return true; }
  static int64_t num_tiles(const GemmInt8Args& args) { return args.M; }
  static int64_t scratch_bytes(const GemmInt8Args&) { return 0; }

  static void run(const GemmInt8Args& args, Range rows, Range tiles, void*) {
    for (int64_t m = tiles.begin; m < tiles.end; ++m) {
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        int32_t acc_i32 = 0;
        for (int64_t k = 0; k < args.K; ++k) acc_i32 += args.x[m * args.ldx + k] * args.weight[n * args.K + k];
        float acc[1] = {float(acc_i32) * (args.x_scale[m] * args.weight_scale[n])};
        apply_epilogue<Simd, 1>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
        args.y[m * args.ldy + n] = acc[0];
      }
    }
  }
};

}  // namespace

Kernel<GemmInt8Args> gemm_s16s8f32_scalar() {
  return make_kernel<GemmInt8Scalar, GemmInt8Args>("gemm_s16s8f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
