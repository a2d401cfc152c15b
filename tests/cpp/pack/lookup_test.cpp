#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "harness.h"
#include "packed_int8.h"

namespace sparsecore::test {
namespace {

using Packed = PackedInt8<LookupView>;

template <class T>
std::vector<T> content(const Buffer<T>& buffer) {
  return {buffer.begin(), buffer.end()};
}

// The picture in views.h.
TEST(Lookup, ThePictureOfTheHeader) {
  const DenseInt8 weight{2, 8, 1, {0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0}};
  const Packed packed(weight, {2, 8, false}, Guard::kAfter);
  EXPECT_EQ(content(packed.entry_ptr), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(content(packed.step_ptr), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(content(packed.entry_group), (std::vector<uint16_t>{0}));
  EXPECT_EQ(content(packed.entry_steps), (std::vector<uint8_t>{1}));
  EXPECT_EQ(content(packed.slots), (std::vector<uint8_t>{1, 5, 0, 0, 3, 0, 0, 0, 3, 9, 0, 0, 8, 0, 0, 0}));
}

struct Sizes {
  int64_t rows, segments, segment_cols;
  double density;
};

Sizes random_sizes(Random& random) {
  return {random.pick<int64_t>({0, 1, 3, 4, 5, 16, 17, 50}), random.pick<int64_t>({1, 1, 3, 9}),
          random.pick<int64_t>({0, 1, 3, 15, 16, 17, 64, 65, 130, 300}), random.pick({0.0, 0.02, 0.1, 0.5, 1.0})};
}

DenseInt8 make_weight(Random& random, const Sizes& sizes, int64_t lowest, int64_t highest) {
  const int64_t cols = sizes.segments * sizes.segment_cols;
  return random_int8(random, sizes.rows, cols, sizes.segments, sizes.density, lowest, highest);
}

std::vector<int8_t> unpacked(const Packed& packed, Random& random) {
  const LookupView view = packed.view();
  Buffer<int8_t> dense(view.rows * view.cols, Guard::kAfter);
  std::fill(dense.begin(), dense.end(), int8_t(99));
  // Blocks are independent of each other.
  const int64_t middle = random.integer(0, view.num_blocks());
  for (const Range blocks : {Range{middle, view.num_blocks()}, Range{0, middle}}) {
    if (blocks.size() > 0) unpack_lookup(view, blocks, dense.data());
  }
  return content(dense);
}

// Every promise of the headers about the arrays.
void check_structure(const Packed& packed, Int8Packing packing) {
  const LookupView view = packed.view();
  ASSERT_EQ(validate_lookup(view, {0, view.num_blocks()}), nullptr);
  ASSERT_EQ(view.entry_ptr[0], 0);
  ASSERT_EQ(view.entry_ptr[view.num_blocks()], view.num_entries);
  ASSERT_EQ(view.step_ptr[view.num_blocks()], view.num_steps);
  const int64_t step_bytes = 2 * view.quad_bytes();
  for (int64_t block = 0; block < view.num_blocks(); ++block) {
    int64_t steps = 0;
    for (int64_t e = view.entry_ptr[block]; e < view.entry_ptr[block + 1]; ++e) {
      ASSERT_LE(1, view.entry_steps[e]);
      ASSERT_LE(view.entry_steps[e], kMaxLookupSteps);
      ASSERT_TRUE(e == view.entry_ptr[block] || view.entry_steps[e - 1] <= view.entry_steps[e]) << "steps fall";
      ASSERT_LT(view.entry_group[e], view.segments * view.groups());
      steps += view.entry_steps[e];
    }
    ASSERT_EQ(steps, view.step_ptr[block + 1] - view.step_ptr[block]);
  }
  for (int64_t step = 0; step < view.num_steps; ++step) {
    const uint8_t* columns = view.slots + step * step_bytes;
    const auto* values = reinterpret_cast<const int8_t*>(columns + view.quad_bytes());
    ASSERT_TRUE(std::any_of(values, values + view.quad_bytes(), [](int8_t value) { return value != 0; }))
        << "a step of nothing";
    for (int64_t i = 0; i < view.quad_bytes(); i += 2) {
      ASSERT_LT(std::max(columns[i], columns[i + 1]), view.table);
      if (!packing.has_safe_pairs) continue;
      // The largest and the smallest that bytes of 0 to 255 make of the two products.
      const int highest = 255 * (std::max<int>(values[i], 0) + std::max<int>(values[i + 1], 0));
      const int lowest = 255 * (std::min<int>(values[i], 0) + std::min<int>(values[i + 1], 0));
      ASSERT_LE(highest, std::numeric_limits<int16_t>::max()) << int(values[i]) << " and " << int(values[i + 1]);
      ASSERT_GE(lowest, std::numeric_limits<int16_t>::min()) << int(values[i]) << " and " << int(values[i + 1]);
    }
  }
}

struct Values {
  const char* name;
  int64_t lowest, highest;
};
constexpr Values kValues[] = {{"any", -128, 127},    {"positive", 1, 127},           {"large positive", 100, 127},
                              {"largest", 127, 127}, {"large negative", -128, -100}, {"least", -128, -128},
                              {"small", -64, 64},    {"at the edge", 63, 66}};

TEST(Lookup, UnpackIsTheExactInverse) {
  for (const Int8Packing packing : all_int8_packings()) {
    for (const Values values : kValues) {
      for (uint64_t seed = 0; seed < 12; ++seed) {
        Random random(seed * 1000 + static_cast<uint64_t>(packing.lanes * packing.table));
        const Sizes sizes = random_sizes(random);
        const Case trace("seed ", seed, ", ", packing_name(packing), ", ", values.name, ", ", sizes.rows, "x",
                         sizes.segments, "x", sizes.segment_cols, ", density ", sizes.density);
        const DenseInt8 weight = make_weight(random, sizes, values.lowest, values.highest);
        const Packed packed(weight, packing, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
        check_structure(packed, packing);
        ASSERT_EQ(unpacked(packed, random), weight.values);
        if (HasFailure()) return;
      }
    }
  }
}

// As many as hold the fullest row of each group, in the least number of entries, of about the same size.
TEST(Lookup, StepsFollowTheFullestRow) {
  for (const int64_t table : {16, 64, 128}) {
    for (int64_t nnz = 0; nnz <= table; ++nnz) {
      DenseInt8 weight{5, table, 1, std::vector<int8_t>(static_cast<size_t>(5 * table))};
      for (int64_t k = 0; k < nnz; ++k) weight.values[static_cast<size_t>(2 * table + k)] = 1;
      const Packed packed(weight, {8, table, false}, Guard::kAfter);
      const int64_t steps = (nnz + 3) / 4, entries = (steps + kMaxLookupSteps - 1) / kMaxLookupSteps;
      ASSERT_EQ(packed.view().num_steps, steps);
      ASSERT_EQ(packed.view().num_entries, entries);
      if (entries > 0) {
        ASSERT_LE(packed.entry_steps[entries - 1] - packed.entry_steps[0], 1);
      }
    }
  }
}

// Safe pairs need no more slots where partners abound.
TEST(Lookup, SafePairsOfBothSignsNeedNoEmptySlots) {
  DenseInt8 weight{1, 16, 1, {}};
  for (int i = 0; i < 16; ++i) weight.values.push_back(static_cast<int8_t>(i % 2 == 0 ? 127 : -128));
  EXPECT_EQ(Packed(weight, {4, 16, true}, Guard::kAfter).view().num_steps, 4);
  weight.values.assign(16, 64);  // 64 + 64 = 128
  EXPECT_EQ(Packed(weight, {4, 16, true}, Guard::kAfter).view().num_steps, 4);
  weight.values.assign(16, 65);
  EXPECT_EQ(Packed(weight, {4, 16, true}, Guard::kAfter).view().num_steps, 8);
}

// The most groups that 16 bits number.
TEST(Lookup, NumbersOfGroupsUpToTheLastOf16Bits) {
  DenseInt8 weight{1, kMaxInt8K, kMaxInt8K, std::vector<int8_t>(static_cast<size_t>(kMaxInt8K))};
  weight.values.front() = 3;
  weight.values.back() = 7;
  const Packed packed(weight, {4, 16, false}, Guard::kAfter);
  Random random(1);
  EXPECT_EQ(packed.entry_group[1], kMaxInt8K - 1);
  EXPECT_EQ(unpacked(packed, random), weight.values);
}

// --- damage ---

struct Damage {
  const char* name;
  const char* message;
  std::function<void(Packed&)> apply;
};

const Damage kDamages[] = {
    {"entry_ptr begins below 0", "entry_ptr", [](Packed& p) { p.entry_ptr[0] = -1; }},
    {"entry_ptr falls", "entry_ptr", [](Packed& p) { p.entry_ptr[2] = p.entry_ptr[1] - 1; }},
    {"entry_ptr ends outside", "entry_ptr", [](Packed& p) { ++p.entry_ptr[p.entry_ptr.size() - 1]; }},
    {"entry_ptr is huge", "entry_ptr", [](Packed& p) { p.entry_ptr[1] = std::numeric_limits<int32_t>::max(); }},
    {"entry_ptr is very negative", "entry_ptr",
     [](Packed& p) { p.entry_ptr[1] = std::numeric_limits<int32_t>::min(); }},
    {"entry_ptr leaves out an entry", "match", [](Packed& p) { --p.entry_ptr[p.entry_ptr.size() - 1]; }},
    {"step_ptr begins below 0", "step_ptr", [](Packed& p) { p.step_ptr[0] = -1; }},
    {"step_ptr falls", "step_ptr", [](Packed& p) { p.step_ptr[2] = p.step_ptr[1] - 1; }},
    {"step_ptr ends outside", "step_ptr", [](Packed& p) { ++p.step_ptr[p.step_ptr.size() - 1]; }},
    {"step_ptr is shifted", "match", [](Packed& p) { --p.step_ptr[1]; }},
    {"a group after the last", "group", [](Packed& p) { p.entry_group[1] = uint16_t(3 * 3); }},
    {"the group 65535", "group", [](Packed& p) { p.entry_group[0] = 65535; }},
    {"no step", "steps", [](Packed& p) { p.entry_steps[0] = 0; }},
    {"too many steps", "steps", [](Packed& p) { p.entry_steps[0] = kMaxLookupSteps + 1; }},
    {"255 steps", "steps", [](Packed& p) { p.entry_steps[p.entry_steps.size() - 1] = 255; }},
    {"steps that fall", "steps", [](Packed& p) { std::swap(p.entry_steps[0], p.entry_steps[p.entry_ptr[1] - 1]); }},
    {"a step less", "match", [](Packed& p) { --p.entry_steps[1]; }},
};

TEST(Lookup, ValidateFindsEachKindOfDamage) {
  for (const Damage& damage : kDamages) {
    const Case trace(damage.name);
    // Three segments of three groups; in the first block the first group has one step and the others have more.
    Random random(5);
    DenseInt8 weight = random_int8(random, 11, 3 * 40, 3, 0.9);
    for (int64_t n = 0; n < 4; ++n) std::fill_n(weight.values.begin() + n * 120, 16, int8_t(n == 0));
    for (int64_t n = 0; n < 4; ++n) std::fill_n(weight.values.begin() + n * 120 + 4, 12, int8_t(0));
    Packed packed(weight, {4, 16, false}, Guard::kAfter);
    const Range blocks{0, packed.view().num_blocks()};
    ASSERT_EQ(validate_lookup(packed.view(), blocks), nullptr);
    ASSERT_LT(packed.entry_steps[0], packed.entry_steps[packed.entry_ptr[1] - 1]);
    damage.apply(packed);
    const char* text = validate_lookup(packed.view(), blocks);
    ASSERT_NE(text, nullptr);
    EXPECT_NE(std::string(text).find(damage.message), std::string::npos) << text;
  }
}

TEST(Lookup, ValidateFindsRowsOutsideOfTheirWindow) {
  Random random(3);
  Packed packed(random_int8(random, 300, 40, 1, 0.5), random_places(random, 300), {16, 64, false}, Guard::kAfter);
  const Range blocks{0, packed.view().num_blocks()};
  ASSERT_EQ(validate_lookup(packed.view(), blocks), nullptr);
  for (const int64_t row : {0, 127, 128, 299}) {
    const uint8_t before = std::exchange(packed.row_place[row], uint8_t(kLookupWindow));
    const char* text = validate_lookup(packed.view(), blocks);
    ASSERT_NE(text, nullptr);
    EXPECT_NE(std::string(text).find("window"), std::string::npos) << text;
    packed.row_place[row] = before;
  }
}

// Only the blocks that are asked for: each thread validates those that it is about to run.
TEST(Lookup, ValidateLooksAtItsBlocksAlone) {
  Random random(1);
  Packed packed(random_int8(random, 12, 40, 1, 0.5), {4, 16, false}, Guard::kAfter);
  packed.entry_steps[packed.entry_ptr[1]] = 0;
  EXPECT_EQ(validate_lookup(packed.view(), {0, 1}), nullptr);
  EXPECT_NE(validate_lookup(packed.view(), {1, 2}), nullptr);
  EXPECT_EQ(validate_lookup(packed.view(), {2, 3}), nullptr);
}

// Whatever validate_lookup() lets through must be safe to unpack; guard pages see what is not.
TEST(Lookup, RandomDamageIsFoundOrHarmless) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    Packed packed(random_int8(random, 11, 3 * 40, 3, 0.5), {4, 16, false}, Guard::kAfter);
    damage_one(random, packed.entry_ptr, packed.step_ptr, packed.entry_group, packed.entry_steps, packed.slots);
    if (validate_lookup(packed.view(), {0, packed.view().num_blocks()}) == nullptr) unpacked(packed, random);
  }
}

}  // namespace
}  // namespace sparsecore::test
