#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"
#include "packed_int4.h"

namespace sparsecore::test {
namespace {

template <class T>
std::vector<T> content(const Buffer<T>& buffer) {
  return {buffer.begin(), buffer.end()};
}

PackedInt4 packed_of(const DenseInt8& weight, Int4Packing packing, Guard guard = Guard::kAfter) {
  Random random(1);
  return PackedInt4(weight, random_scales(random, weight.rows, weight.cols, packing.group_cols), packing, guard);
}

std::vector<int8_t> unpacked(const PackedInt4& packed, Random& random) {
  const LookupInt4View view = packed.view();
  Buffer<int8_t> dense(view.rows * view.cols, Guard::kAfter);
  std::fill(dense.begin(), dense.end(), int8_t(99));
  // Blocks are independent of each other.
  const int64_t middle = random.integer(0, view.num_blocks());
  for (const Range blocks : {Range{middle, view.num_blocks()}, Range{0, middle}}) {
    if (blocks.size() > 0) unpack_lookup_int4(view, blocks, dense.data());
  }
  return content(dense);
}

// The picture in views.h.
TEST(LookupInt4, ThePictureOfTheHeader) {
  DenseInt8 weight{2, 64, 1, std::vector<int8_t>(128)};
  weight.values[1] = 3;
  weight.values[5] = -1;
  weight.values[40] = 5;
  weight.values[64 + 3] = 2;
  const PackedInt4 packed = packed_of(weight, {2, 64, 64});
  EXPECT_EQ(content(packed.entry_ptr), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(content(packed.step_ptr), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(content(packed.entry_table), (std::vector<uint8_t>{0}));
  EXPECT_EQ(content(packed.entry_steps), (std::vector<uint8_t>{2}));
  EXPECT_EQ(content(packed.slots),
            (std::vector<uint8_t>{0x31, 0xf3, 0x0f, 0x0f, 0x23, 0, 0, 0, 0x52, 0, 0, 0, 0, 0, 0, 0}));
}

// Columns themselves where they fit in 4 bits.
TEST(LookupInt4, TablesOf16HoldColumns) {
  DenseInt8 weight{1, 32, 1, std::vector<int8_t>(32)};
  weight.values[2] = 7;
  weight.values[15] = -8;
  weight.values[31] = 1;
  const PackedInt4 packed = packed_of(weight, {1, 16, 32});
  EXPECT_EQ(content(packed.entry_table), (std::vector<uint8_t>{0, 1}));
  EXPECT_EQ(content(packed.entry_steps), (std::vector<uint8_t>{1, 1}));
  EXPECT_EQ(content(packed.slots), (std::vector<uint8_t>{0x72, 0x8f, 0, 0, 0x1f, 0, 0, 0}));
}

TEST(LookupInt4, UnpackIsTheExactInverse) {
  uint64_t seed = 0;
  for (const Int4Packing packing : all_int4_packings()) {
    for (int i = 0; i < 12; ++i) {
      Random random(++seed);
      const int64_t rows = random.pick<int64_t>({0, 1, 3, 4, 5, 16, 17, 50});
      const int64_t cols = random.pick<int64_t>({0, 1, 15, 16, 17, 64, 65, 255, 256, 300, 900});
      const double density = random.pick({0.0, 0.002, 0.02, 0.1, 0.5, 1.0});
      const Case trace("seed ", seed, ", ", packing, ", ", rows, "x", cols, ", density ", density);
      const DenseInt8 weight = random_int8(random, rows, cols, 1, density, -8, 7);
      const PackedInt4 packed = packed_of(weight, packing, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
      const LookupInt4View view = packed.view();
      ASSERT_EQ(validate_lookup_int4(view, {0, view.num_blocks()}), nullptr);
      ASSERT_EQ(view.entry_ptr[view.num_blocks() * view.groups()], view.num_entries);
      ASSERT_EQ(view.step_ptr[view.num_blocks()], view.num_steps);
      ASSERT_EQ(unpacked(packed, random), weight.values);
    }
  }
}

// Fillers only where a distance needs them, and steps of the fullest row.
TEST(LookupInt4, NoMoreSlotsThanNeeded) {
  for (const int64_t distance : {1, 2, 15, 16, 17, 32, 33, 48, 255}) {
    DenseInt8 weight{3, 256, 1, std::vector<int8_t>(3 * 256)};
    int64_t values = 0;
    for (int64_t k = distance - 1; k < 256; k += distance, ++values) weight.values[static_cast<size_t>(256 + k)] = 1;
    const int64_t slots = values * ((distance + 15) / 16);
    EXPECT_EQ(packed_of(weight, {4, 256, 256}).view().num_steps, (slots + 3) / 4) << distance;
  }
}

// Within a group loops end predictably.
TEST(LookupInt4, EntriesOfAGroupComeWithFewStepsFirst) {
  Random random(2);
  const DenseInt8 weight = random_int8(random, 40, 2000, 1, 0.3, -8, 7);
  const PackedInt4 packed = packed_of(weight, {8, 16, 256});
  const LookupInt4View view = packed.view();
  for (int64_t at = 0; at < view.num_blocks() * view.groups(); ++at) {
    EXPECT_TRUE(std::is_sorted(view.entry_steps + view.entry_ptr[at], view.entry_steps + view.entry_ptr[at + 1]));
  }
}

struct Damage {
  const char* message;
  std::function<void(PackedInt4&)> apply;
};

TEST(LookupInt4, ValidateFindsWhatKernelsCannotRunOn) {
  const Damage damages[] = {
      {"entry_ptr", [](PackedInt4& p) { p.entry_ptr[0] = -1; }},
      {"entry_ptr", [](PackedInt4& p) { p.entry_ptr[1] = -1; }},
      {"entry_ptr", [](PackedInt4& p) { p.entry_ptr[p.entry_ptr.size() - 1] += 1; }},
      {"step_ptr", [](PackedInt4& p) { p.step_ptr[0] = -1; }},
      {"step_ptr", [](PackedInt4& p) { p.step_ptr[1] = -5; }},
      {"step_ptr", [](PackedInt4& p) { p.step_ptr[p.step_ptr.size() - 1] += 1; }},
      {"does not match", [](PackedInt4& p) { p.step_ptr[1] -= 1; }},
      {"in no table", [](PackedInt4& p) { p.entry_table[0] = 4; }},
      // The last group has one table.
      {"in no table", [](PackedInt4& p) { p.entry_table[p.entry_ptr[2] - 1] = 1; }},
      {"steps of an entry", [](PackedInt4& p) { p.entry_steps[0] = 0; }},
      {"steps of an entry", [](PackedInt4& p) { p.entry_steps[0] = 17; }},
      {"does not match", [](PackedInt4& p) { p.entry_steps[0] -= 1; }},
      {"does not match", [](PackedInt4& p) { p.entry_steps[p.entry_steps.size() - 1] += 1; }},
  };
  for (const Damage& damage : damages) {
    Random random(5);
    const DenseInt8 weight = random_int8(random, 11, 300, 1, 0.9, -8, 7);
    PackedInt4 packed = packed_of(weight, {4, 64, 256});
    const Range blocks{0, packed.view().num_blocks()};
    ASSERT_EQ(validate_lookup_int4(packed.view(), blocks), nullptr);
    damage.apply(packed);
    const char* text = validate_lookup_int4(packed.view(), blocks);
    ASSERT_NE(text, nullptr) << damage.message;
    EXPECT_NE(std::string(text).find(damage.message), std::string::npos) << text;
  }
}

TEST(LookupInt4, ValidateFindsRowsOutsideOfTheirWindow) {
  Random random(3);
  const DenseInt8 weight = random_int8(random, 300, 40, 1, 0.5, -8, 7);
  PackedInt4 packed(weight, random_scales(random, 300, 40, 64), {16, 64, 64}, Guard::kAfter,
                    random_places(random, 300));
  const Range blocks{0, packed.view().num_blocks()};
  ASSERT_EQ(validate_lookup_int4(packed.view(), blocks), nullptr);
  packed.row_place[299] = uint8_t(kLookupWindow);
  EXPECT_NE(validate_lookup_int4(packed.view(), blocks), nullptr);
}

// Whatever validate_lookup_int4() lets through must be safe to unpack; guard pages see what is not.
TEST(LookupInt4, RandomDamageIsFoundOrHarmless) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    PackedInt4 packed = packed_of(random_int8(random, 11, 130, 1, 0.5, -8, 7), {4, random.pick<int64_t>({16, 64}), 64});
    damage_one(random, packed.entry_ptr, packed.step_ptr, packed.entry_table, packed.entry_steps, packed.slots);
    if (validate_lookup_int4(packed.view(), {0, packed.view().num_blocks()}) == nullptr) unpacked(packed, random);
  }
}

}  // namespace
}  // namespace sparsecore::test
