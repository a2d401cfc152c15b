// Selection from a table, and what every table promises about itself.
#include "sparsecore/kernel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <string_view>

#include "sparsecore/codebook.h"
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

// function(name of the operation, its table): the one list of tables in these tests.
template <class Function>
void for_each_table(Function function) {
  function("spmm", spmm_kernels());
  function("spmm_block", spmm_block_kernels());
  function("spmm_panel", spmm_panel_kernels());
  function("spmm_jit", spmm_jit_kernels());
  function("spmm_bitmap", spmm_bitmap_kernels());
  function("spmm_codebook", spmm_codebook_kernels());
  function("spmm_planes", spmm_planes_kernels());
  function("conv2d", conv2d_kernels());
  function("conv2d_block", conv2d_block_kernels());
  function("conv2d_panel", conv2d_panel_kernels());
  function("conv2d_jit", conv2d_jit_kernels());
  function("depthwise", depthwise_kernels());
  function("gemm_int8", gemm_int8_kernels());
  function("bitmap_int8", bitmap_int8_kernels());
  function("lookup_int8", lookup_int8_kernels());
  function("lookup_int4", lookup_int4_kernels());
  function("pool2d", pool2d_kernels());
  function("scale_shift", scale_shift_kernels());
  function("quantize", quantize_kernels());
  function("probe", probes());
}

TEST(Tables, EndWithTheirOnlyScalarRow) {
  for_each_table([](const char* op, const auto& rows) {
    if (std::string_view(op).ends_with("_jit")) return;  // code is generated for an instruction set
    ASSERT_FALSE(rows.empty()) << op;
    EXPECT_EQ(rows.back().isa, Isa::kScalar) << op;
    for (size_t i = 0; i + 1 < rows.size(); ++i) EXPECT_NE(rows[i].isa, Isa::kScalar) << rows[i].name;
  });
}

template <class Args>
Args args_of(Int8Packing packing) {
  Args args;
  args.weight.lanes = packing.lanes;
  if constexpr (requires { args.weight.table; }) {
    args.weight.table = packing.table;
    args.weight.has_safe_pairs = packing.has_safe_pairs;
  }
  return args;
}

// The kernels of the three int8 products, with what they are asked.
template <class Function>
void for_each_int8_table(Int8Packing packing, Function function) {
  function(gemm_int8_kernels(), args_of<GemmInt8Args>(packing));
  function(bitmap_int8_kernels(), args_of<BitmapInt8Args>(packing));
  function(lookup_int8_kernels(), args_of<LookupInt8Args>(packing));
}

TEST(Tables, ScalarSupportsWhatNoVectorKernelDoes) {
  for_each_int8_table({6, 10, false}, [](const auto& kernels, const auto& args) {
    EXPECT_TRUE(kernels.back().supports(args)) << kernels.back().name;
    EXPECT_EQ(select_kernel(kernels, args).isa, Isa::kScalar);
  });
}

// Of the instruction set that is in use, whatever it is.
TEST(Tables, WeightsArePackedForAKernelOfTheBestInstructionSet) {
  for (const bool few_positions : {false, true}) {
    for_each_int8_table(int8_packing(few_positions), [](const auto& kernels, const auto& args) {
      const auto is_enabled = [](const auto& row) { return isa_enabled(row.isa); };
      const auto best = std::find_if(kernels.begin(), kernels.end(), is_enabled);
      EXPECT_EQ(select_kernel(kernels, args).isa, best->isa) << best->name;
    });
  }
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
  size_t num_rows = 0;
  for_each_table([&](const char* op, const auto& rows) {
    num_rows += rows.size();
    for (const auto& row : rows) {
      const auto is_row = [&](const KernelInfo& info) {
        return std::string_view(op) == info.op && std::string_view(row.name) == info.name && row.isa == info.isa;
      };
      EXPECT_EQ(std::count_if(all_kernels().begin(), all_kernels().end(), is_row), 1) << row.name;
    }
  });
  EXPECT_EQ(all_kernels().size(), num_rows);
}

}  // namespace
}  // namespace sparsecore::test
