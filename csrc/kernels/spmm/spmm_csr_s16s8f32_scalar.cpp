#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "simd/activation.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

struct SpmmInt8Scalar {
  static bool supports(const SpmmInt8Args&) { return true; }
  static int64_t num_tiles(const SpmmInt8Args& args) { return args.M; }
  static int64_t scratch_bytes(const SpmmInt8Args&) { return 0; }

  static void run(const SpmmInt8Args& args, Range rows, Range tiles, void*) {
    const CsrView<int8_t>& weight = args.weight;
    for (int64_t m = tiles.begin; m < tiles.end; ++m) {
      const int16_t* x = args.x + m * args.ldx;
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        int32_t acc_i32 = 0;
        for (int64_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
          acc_i32 += x[weight.col_idx[i]] * weight.values[i];
        }
        float acc[1] = {float(acc_i32) * (args.x_scale[m] * args.weight_scale[n])};
        apply_epilogue<Simd, 1>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
        args.y[m * args.ldy + n] = acc[0];
      }
    }
  }
};

}  // namespace

Kernel<SpmmInt8Args> spmm_csr_s16s8f32_scalar() {
  return make_kernel<SpmmInt8Scalar, SpmmInt8Args>("spmm_csr_s16s8f32_scalar", Isa::kScalar);
}

}  // namespace sparsecore
