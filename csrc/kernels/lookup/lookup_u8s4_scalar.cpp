#include "simd/scalar.h"
// The algorithm text needs the wrapper before it.
#include "kernels/int8_product.h"

namespace sparsecore {
namespace {

// For weights packed for any number of lanes and any table.
struct Scalar {
  using Args = LookupInt4Args;
  static constexpr int kBlocks = 1, kPositions = 1;
  static constexpr int32_t kByteOffset = 0;
  static constexpr bool kWidens = false, kHasScaledSums = true;
  static bool supports(const LookupInt4View&) { return true; }
  static int64_t num_offsets(const LookupInt4View&) { return 0; }
  static void fill_offsets(const Args&, int64_t*) {}

  template <int, int>
  static void accumulate(const LookupInt4View& weight, int32_t zero_point, int64_t block, const uint8_t* const* x,
                         float* acc, int64_t) {
    for (int64_t lane = 0; lane < weight.lanes; ++lane) acc[lane] = 0.0f;
    const uint8_t* slots = weight.slots + int64_t(weight.step_ptr[block]) * weight.quad_bytes();
    for (int64_t g = 0; g < weight.groups(); ++g) {
      const int64_t at = block * weight.groups() + g;
      int32_t sums[kMaxTileRows] = {};
      for (int64_t e = weight.entry_ptr[at]; e < weight.entry_ptr[at + 1]; ++e) {
        const uint8_t* table = x[0] + g * weight.group_cols + weight.entry_table[e] * weight.table;
        for (int64_t lane = 0; lane < weight.lanes; ++lane) {
          sums[lane] += sum_of(weight, slots + 4 * lane, weight.entry_steps[e], table);
        }
        slots += weight.entry_steps[e] * weight.quad_bytes();
      }
      for (int64_t lane = 0; lane < weight.lanes; ++lane) {
        const int32_t zero = zero_point * weight.group_sum[at * weight.lanes + lane];
        const float sum = Simd::from_difference(sums + lane, &zero);
        acc[lane] = Simd::fma(sum, weight.group_scale[at * weight.lanes + lane], acc[lane]);
      }
    }
  }

 private:
  // Of the slots of one lane in an entry.
  static int32_t sum_of(const LookupInt4View& weight, const uint8_t* slots, int64_t steps, const uint8_t* table) {
    int32_t sum = 0;
    int64_t column = -1;
    for (int64_t i = 0; i < 4 * steps; ++i) {
      const uint8_t slot = slots[i / 4 * weight.quad_bytes() + i % 4];
      column = weight.has_distances() ? (column + 1 + (slot & 0xf)) % weight.table : slot & 0xf;
      sum += table[column] * (static_cast<int8_t>(slot) >> 4);
    }
    return sum;
  }
};

}  // namespace

Kernel<LookupInt4Args> lookup_u8s4_scalar() {
  return make_kernel<Int8Kernel<Simd, Scalar>, LookupInt4Args>("lookup_u8s4_scalar", Isa::kScalar);
}

}  // namespace sparsecore
