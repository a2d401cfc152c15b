#include "sparsecore/jit.h"

#include <gtest/gtest.h>

#include "csr.h"
#include "random.h"

namespace sparsecore::test {
namespace {

class JitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!isa_enabled(Isa::kAvx512)) GTEST_SKIP() << "no generator for this instruction set";
  }
  static std::shared_ptr<const JitProgram> program_of(int64_t N, int64_t K) {
    Random random(uint64_t(N * 10000 + K));
    return JitProgram::generate(random_csr<float>(random, N, K, Fill::kTenth).view());
  }
};

TEST_F(JitTest, BlocksAreEquallyLarge) {
  const auto program = program_of(64, 300);
  const JitView& view = program->view();
  EXPECT_EQ(view.num_blocks(), (64 + view.block_rows - 1) / view.block_rows);
  EXPECT_GT(64 - (view.num_blocks() - 1) * view.block_rows, view.block_rows - view.num_blocks());
}

// Segments lie in the order in which kernels run them, and together hold every entry once.
TEST_F(JitTest, SegmentsFollowEachOther) {
  const auto program = program_of(700, 600);
  const JitView& view = program->view();
  ASSERT_GT(view.num_blocks(), view.group_blocks);
  int64_t expected = 0;
  for (int64_t block = 0; block < view.num_blocks(); block = view.group_of(block).end) {
    for (int64_t panel = 0; panel < view.num_panels(); ++panel) {
      EXPECT_EQ(view.segment_of(view.group_of(block), panel), expected);
      expected += view.group_of(block).size();
    }
  }
  EXPECT_EQ(expected, view.num_segments());
  for (int64_t i = 0; i < view.num_segments(); ++i) {
    EXPECT_LT(view.code_ptr[i], view.code_ptr[i + 1]);
    EXPECT_LE(view.entry_ptr[i], view.entry_ptr[i + 1]);
  }
  EXPECT_EQ(view.entry_ptr[view.num_segments()], view.nnz);
  EXPECT_EQ(view.block_ptr[view.num_blocks()], view.nnz);
  EXPECT_GE(program->nbytes(), view.code_ptr[view.num_segments()] + view.nnz * int64_t(sizeof(float)));
}

TEST_F(JitTest, EmptyWeightsHaveEmptyPrograms) {
  EXPECT_EQ(program_of(0, 5)->view().num_segments(), 0);
  EXPECT_EQ(program_of(5, 0)->view().nnz, 0);
}

TEST(Jit, ThereIsNoProgramWithoutAGenerator) {
  if (isa_enabled(Isa::kAvx512)) GTEST_SKIP() << "there is one";
  Random random(1);
  EXPECT_EQ(JitProgram::generate(random_csr<float>(random, 3, 4, Fill::kHalf).view()), nullptr);
}

}  // namespace
}  // namespace sparsecore::test
