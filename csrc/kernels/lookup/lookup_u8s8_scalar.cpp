#include "simd/scalar.h"
// The algorithm text needs the wrapper before it.
#include "kernels/int8_product.h"

namespace sparsecore {
namespace {

// For weights packed for any number of lanes and any table.
struct Scalar {
  using Args = LookupInt8Args;
  static constexpr int kBlocks = 1, kPositions = 1;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = false;
  static bool supports(const LookupView&) { return true; }
  static int64_t num_offsets(const LookupView& weight) { return weight.segments * weight.groups(); }
  static void fill_offsets(const Args& args, int64_t* offset) {
    const int64_t groups = args.weight.groups();
    for (int64_t g = 0; g < args.weight.segments * groups; ++g) {
      offset[g] = args.x.segment_offset[g / groups] + g % groups * args.weight.table;
    }
  }

  template <int, int>
  static void accumulate(const LookupView& weight, int64_t block, const uint8_t* const* x, const int64_t* offset,
                         int32_t* acc, int64_t) {
    for (int64_t lane = 0; lane < weight.lanes; ++lane) acc[lane] = 0;
    const int64_t quad_bytes = weight.quad_bytes();
    const uint8_t* slots = weight.slots + int64_t(weight.step_ptr[block]) * 2 * quad_bytes;
    for (int64_t e = weight.entry_ptr[block]; e < weight.entry_ptr[block + 1]; ++e) {
      const uint8_t* table = x[0] + offset[weight.entry_group[e]];
      for (int64_t step = 0; step < weight.entry_steps[e]; ++step, slots += 2 * quad_bytes) {
        for (int64_t i = 0; i < quad_bytes; ++i) {
          acc[i / 4] += table[slots[i] % weight.table] * static_cast<int8_t>(slots[quad_bytes + i]);
        }
      }
    }
  }
};

}  // namespace

Kernel<LookupInt8Args> lookup_u8s8_scalar() {
  return make_kernel<Int8Kernel<Simd, Scalar>, LookupInt8Args>("lookup_u8s8_scalar", Isa::kScalar);
}

}  // namespace sparsecore
