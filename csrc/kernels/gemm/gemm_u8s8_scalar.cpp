#include "simd/scalar.h"
// The algorithm text needs the wrapper before it.
#include "kernels/int8_product.h"

namespace sparsecore {
namespace {

// For weights packed for any number of lanes.
struct Scalar {
  using Args = GemmInt8Args;
  static constexpr int kBlocks = 1, kPositions = 1;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = false;
  static bool supports(const Int8View&) { return true; }
  static int64_t num_offsets(const Int8View& weight) { return weight.segments; }
  static void fill_offsets(const Args& args, int64_t* offset) {
    for (int64_t s = 0; s < args.weight.segments; ++s) offset[s] = args.x.segment_offset[s];
  }

  template <int, int>
  static void accumulate(const Int8View& weight, int64_t block, const uint8_t* const* x, const int64_t* offset,
                         int32_t* acc, int64_t) {
    for (int64_t lane = 0; lane < weight.lanes; ++lane) acc[lane] = 0;
    const int8_t* values = weight.values + block * weight.block_bytes();
    for (int64_t s = 0; s < weight.segments; ++s) {
      for (int64_t k = 0; k < weight.quads() * 4; k += 4) {
        for (int64_t lane = 0; lane < weight.lanes; ++lane) {
          for (int64_t i = 0; i < 4; ++i) acc[lane] += x[0][offset[s] + k + i] * *values++;
        }
      }
    }
  }
};

}  // namespace

Kernel<GemmInt8Args> gemm_u8s8_scalar() {
  return make_kernel<Int8Kernel<Simd, Scalar>, GemmInt8Args>("gemm_u8s8_scalar", Isa::kScalar);
}

}  // namespace sparsecore
