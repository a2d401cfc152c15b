// What only the lookup format has; int8_product_test.cpp checks its results.
#include <gtest/gtest.h>

#include "int8_problem.h"

namespace sparsecore::test {
namespace {

class LookupInt8Test : public KernelTest<LookupInt8Args> {};
SPARSECORE_TEST_EACH_KERNEL(LookupInt8Test, lookup_int8_kernels());

// validate_lookup() does not look at them: a damaged one gives a wrong result and no wrong read.
TEST_P(LookupInt8Test, ColumnsOfSlotsOutsideTheTable) {
  for (const int64_t K : {1, 16, 70, 130}) {
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      for (const Int8Packing packing : int8_packings_of(kernel())) {
        const Int8Shape shape{.N = 9, .channels = K, .images = 5, .density = 0.5, .guard = guard, .seed = 1};
        const Case trace(shape, ", ", packing_name(packing));
        const Int8Problem problem(shape);
        PackedInt8<LookupView> weight(problem.weight(), packing, guard);
        Random random(static_cast<uint64_t>(K));
        for (uint8_t& slot : weight.slots) slot = static_cast<uint8_t>(random.integer(0, 255));
        problem.run(kernel(), weight);
      }
    }
  }
}

// More steps than an entry may have, in one group and in all.
TEST_P(LookupInt8Test, GroupsOfSeveralEntries) {
  uint64_t seed = 0;
  for (const Int8Packing packing : int8_packings_of(kernel())) {
    for (const int64_t full_groups : {1, 3}) {
      for (const int64_t images : {1, 4, 40}) {
        const Int8Shape shape{.N = 20, .channels = full_groups * packing.table + 1, .images = images, .seed = ++seed};
        const Case trace(shape, ", ", packing_name(packing));
        const Int8Problem problem(shape);
        const PackedInt8<LookupView> weight(problem.weight(), packing, shape.guard);
        if (packing.table > 4 * kMaxLookupSteps) {
          ASSERT_GT(weight.view().num_entries, (full_groups + 1) * weight.view().num_blocks());
        }
        problem.check(problem.run(kernel(), weight));
        if (HasFailure()) return;
      }
    }
  }
}

// Rows that change places inside of windows, one window after the other and cut at any block.
TEST_P(LookupInt8Test, RowsInAnotherOrder) {
  uint64_t seed = 0;
  for (const int64_t N : {1, 15, 17, 127, 128, 129, 300}) {
    for (const int64_t images : {1, 3, 33, 70}) {
      for (const Int8Packing packing : int8_packings_of(kernel())) {
        Random random(++seed);
        Int8Shape shape{.N = N, .channels = random.pick<int64_t>({1, 70, 300}), .images = images, .density = 0.3};
        randomize_options(shape, random);
        shape.seed = seed;
        const Case trace(shape, ", ", packing_name(packing));
        const Int8Problem problem(shape);
        const PackedInt8<LookupView> weight(problem.weight(), random_places(random, N), packing, shape.guard);
        ASSERT_EQ(validate_lookup(weight.view(), {0, weight.view().num_blocks()}), nullptr);
        problem.check(problem.run(kernel(), weight));
        problem.check(problem.run_with<LookupInt8Args>(weight, [&](const LookupInt8Args& args, int64_t num_blocks) {
          run_split(kernel(), args, {0, num_blocks}, {0, kernel().num_tiles(args)}, random);
        }));
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
