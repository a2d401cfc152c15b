// What only the bitmap format has; int8_product_test.cpp checks its results.
#include <gtest/gtest.h>

#include "int8_problem.h"

namespace sparsecore::test {
namespace {

class BitmapInt8Test : public KernelTest<BitmapInt8Args> {};
SPARSECORE_TEST_EACH_KERNEL(BitmapInt8Test, bitmap_int8_kernels());

// Nobody counts the bits of the masks: damaged ones give a wrong result and no wrong read.
TEST_P(BitmapInt8Test, MasksOfMoreBitsThanValues) {
  for (const int64_t K : {1, 4, 33, 130}) {
    for (const double density : {0.0, 0.1, 1.0}) {
      for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
        for (const Int8Packing packing : int8_packings_of(kernel())) {
          const Int8Shape shape{.N = 70, .channels = K, .images = 5, .density = density, .guard = guard, .seed = 1};
          const Case trace(shape, ", ", packing_name(packing));
          const Int8Problem problem(shape);
          PackedInt8<BitmapInt8View> weight(problem.weight(), packing, guard);
          std::fill(weight.masks.begin(), weight.masks.end(), uint8_t(0xff));
          problem.run(kernel(), weight);
          // The last valid pointers of all: every block starts after the last value.
          for (int32_t& pointer : weight.value_ptr) pointer = static_cast<int32_t>(weight.view().nnz);
          problem.run(kernel(), weight);
        }
      }
    }
  }
}

// The picture in views.h.
TEST(BitmapInt8, ThePictureOfTheHeader) {
  const DenseInt8 weight{2, 4, 1, {5, 0, 0, 7, 0, 0, 1, 0}};
  const PackedInt8<BitmapInt8View> packed(weight, {2, 16, false}, Guard::kAfter);
  ASSERT_EQ(packed.masks.size(), 1);
  EXPECT_EQ(packed.masks[0], 0b01001001);
  ASSERT_EQ(packed.view().nnz, 3);
  EXPECT_EQ(std::vector<int8_t>(packed.values.begin(), packed.values.begin() + 3), (std::vector<int8_t>{5, 7, 1}));
}

}  // namespace
}  // namespace sparsecore::test
