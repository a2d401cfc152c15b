// Selection from a table, and what every table promises about itself.
#include "sparsecore/kernel.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

struct FakeArgs {
  bool is_supported_by_first = false;
};

struct Never {
  static bool supports(const FakeArgs&) { return false; }
  static int64_t num_tiles(const FakeArgs&) { return 1; }
  static int64_t scratch_bytes(const FakeArgs&) { return 0; }
  static void run(const FakeArgs&, Range, Range, void*) {}
};
struct Sometimes : Never {
  static bool supports(const FakeArgs& args) { return args.is_supported_by_first; }
};
struct Always : Never {
  static bool supports(const FakeArgs&) { return true; }
};

#if defined(__x86_64__)
constexpr Isa kForeign = Isa::kNeon;
#else
constexpr Isa kForeign = Isa::kAvx2;
#endif

const Kernel<FakeArgs> kTable[] = {
    make_kernel<Always, FakeArgs>("fake_foreign", kForeign),
    make_kernel<Sometimes, FakeArgs>("fake_sometimes", Isa::kScalar),
    make_kernel<Always, FakeArgs>("fake_scalar", Isa::kScalar),
    make_kernel<Never, FakeArgs>("fake_never", Isa::kScalar),
};

TEST(SelectKernel, TakesTheFirstThatIsEnabledAndSupportsTheArguments) {
  const std::span<const Kernel<FakeArgs>> table(kTable);
  EXPECT_STREQ(select_kernel(table, FakeArgs{true}).name, "fake_sometimes");
  EXPECT_STREQ(select_kernel(table, FakeArgs{false}).name, "fake_scalar");
}

TEST(FindKernel, NeedsTheNameTheIsaAndTheSupport) {
  const std::span<const Kernel<FakeArgs>> table(kTable);
  EXPECT_EQ(find_kernel(table, "fake_sometimes", FakeArgs{true}), &kTable[1]);
  EXPECT_EQ(find_kernel(table, "fake_sometimes", FakeArgs{false}), nullptr);
  EXPECT_EQ(find_kernel(table, "fake_foreign", FakeArgs{true}), nullptr);
  EXPECT_EQ(find_kernel(table, "fake_never", FakeArgs{true}), nullptr);
  EXPECT_EQ(find_kernel(table, "fake", FakeArgs{true}), nullptr);
  EXPECT_EQ(find_kernel(table, "", FakeArgs{true}), nullptr);
}

template <class Rows>
void expect_scalar_last(const Rows& rows) {
  ASSERT_FALSE(rows.empty());
  EXPECT_EQ(rows.back().isa, Isa::kScalar);
  for (size_t i = 0; i + 1 < rows.size(); ++i) EXPECT_NE(rows[i].isa, Isa::kScalar) << rows[i].name;
}

TEST(Tables, EndWithOneScalarRow) {
  expect_scalar_last(spmm_kernels());
  expect_scalar_last(spmm_int8_kernels());
  expect_scalar_last(conv2d_kernels());
  expect_scalar_last(gemm_int8_kernels());
  expect_scalar_last(quantize_kernels());
  expect_scalar_last(probes());
}

TEST(Tables, ScalarSupportsEverything) {
  EXPECT_TRUE(spmm_kernels().back().supports({}));
  EXPECT_TRUE(spmm_int8_kernels().back().supports({}));
  EXPECT_TRUE(conv2d_kernels().back().supports({}));
  GemmInt8Args gemm;
  gemm.K = gemm.ldx = 17;
  EXPECT_TRUE(gemm_int8_kernels().back().supports(gemm));
  EXPECT_TRUE(quantize_kernels().back().supports({}));
}

TEST(Tables, NamesAreUniqueAndEndWithTheirIsa) {
  std::set<std::string> names;
  for (const KernelInfo& info : all_kernels()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name << " is there twice";
    const std::string suffix = std::string("_") + isa_name(info.isa);
    EXPECT_TRUE(std::string(info.name).ends_with(suffix)) << info.name << " should end with " << suffix;
  }
}

TEST(Tables, AllKernelsListsEveryRowOfEveryTable) {
  EXPECT_EQ(all_kernels().size(), spmm_kernels().size() + spmm_int8_kernels().size() + conv2d_kernels().size() +
                                      gemm_int8_kernels().size() + quantize_kernels().size() + probes().size());
  const auto lists = [](std::string_view op, const char* name) {
    for (const KernelInfo& info : all_kernels()) {
      if (op == info.op && std::string_view(name) == info.name) return true;
    }
    return false;
  };
  for (const auto& kernel : spmm_kernels()) EXPECT_TRUE(lists("spmm", kernel.name)) << kernel.name;
  for (const auto& kernel : spmm_int8_kernels()) EXPECT_TRUE(lists("spmm_int8", kernel.name)) << kernel.name;
  for (const auto& kernel : conv2d_kernels()) EXPECT_TRUE(lists("conv2d", kernel.name)) << kernel.name;
  for (const auto& kernel : gemm_int8_kernels()) EXPECT_TRUE(lists("gemm_int8", kernel.name)) << kernel.name;
  for (const auto& kernel : quantize_kernels()) EXPECT_TRUE(lists("quantize", kernel.name)) << kernel.name;
  for (const auto& probe : probes()) EXPECT_TRUE(lists("probe", probe.name)) << probe.name;
}

}  // namespace
}  // namespace sparsecore::test
