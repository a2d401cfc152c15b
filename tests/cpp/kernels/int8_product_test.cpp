// What the int8 products of all formats have in common, on every packing that a kernel supports.
#include <gtest/gtest.h>

#include <variant>
#include <vector>

#include "int8_problem.h"

namespace sparsecore::test {
namespace {

class Int8ProductTest : public KernelTest<GemmInt8Args, BitmapInt8Args, LookupInt8Args> {
 protected:
  // function(kernel, packings to try it on)
  template <class Function>
  void visit(Function function) {
    const auto with_packings = [&](const auto& kernel) {
      const std::vector<Int8Packing> packings = int8_packings_of(kernel);
      ASSERT_FALSE(packings.empty()) << "a kernel should support a packing of these tests";
      function(kernel, packings);
    };
    std::visit(with_packings, any_kernel().row);
  }

  // On one of the packings; shapes with seeds in a row take them in turn.
  void check(const Int8Shape& shape) {
    visit([&]<class Args>(const Kernel<Args>& kernel, const std::vector<Int8Packing>& packings) {
      check_packing(kernel, shape, packings[shape.seed % packings.size()]);
    });
  }
  void check_on_all_packings(const Int8Shape& shape) {
    visit([&]<class Args>(const Kernel<Args>& kernel, const std::vector<Int8Packing>& packings) {
      for (const Int8Packing packing : packings) check_packing(kernel, shape, packing);
    });
  }

 private:
  template <class Args>
  void check_packing(const Kernel<Args>& kernel, const Int8Shape& shape, Int8Packing packing) {
    const Case trace(shape, ", ", packing_name(packing));
    const Int8Problem problem(shape);
    const PackedInt8<decltype(Args::weight)> weight(problem.weight(), packing, shape.guard);
    problem.check(problem.run(kernel, weight));
  }
};
SPARSECORE_TEST_EACH_KERNEL(Int8ProductTest, gemm_int8_kernels(), bitmap_int8_kernels(), lookup_int8_kernels());

constexpr double kDensities[] = {0.0, 0.01, 0.1, 0.5, 1.0};

// Around blocks of 4, 8 and 16, several of them at once, quads, tables, and tiles of 32 positions.
TEST_P(Int8ProductTest, LinearAroundTheTile) {
  uint64_t seed = 1000;
  for (const int64_t N : {0, 1, 3, 4, 5, 15, 16, 17, 49, 70}) {
    for (const int64_t M : {1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 70}) {
      for (const int64_t K : {0, 1, 3, 4, 63, 64, 65, 200}) {
        Random random(++seed);
        Int8Shape shape{.N = N, .channels = K, .images = M};
        shape.gap = random.pick<int64_t>({0, 1, 40});
        shape.density = random.pick(kDensities);
        randomize_options(shape, random);
        shape.seed = seed;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Int8ProductTest, LongRows) {
  uint64_t seed = 5000;
  for (const int64_t M : {1, 2, 3, 5, 17, 33}) {
    for (const double density : kDensities) {
      Random random(++seed);
      Int8Shape shape{.N = 37, .channels = 1100, .images = M, .density = density};
      randomize_options(shape, random);
      shape.seed = seed;
      check_on_all_packings(shape);
      if (HasFailure()) return;
    }
  }
}

// Tiles whose positions cross rows and images, filters in segments per row and per tap.
TEST_P(Int8ProductTest, Convolutions) {
  for (uint64_t seed = 10000; seed < 10400; ++seed) {
    Random random(seed);
    Int8Shape shape{.N = random.pick<int64_t>({1, 6, 16, 40}), .channels = random.pick<int64_t>({1, 3, 4, 17, 64, 70})};
    shape.kernel_h = random.pick<int64_t>({1, 3});
    shape.kernel_w = 3;
    shape.is_by_row = random.chance(0.5);
    shape.stride = random.integer(1, 2);
    shape.dilation = shape.is_by_row ? 1 : random.integer(1, 2);
    shape.gap = random.pick<int64_t>({0, 5});
    shape.images = random.integer(1, 4);
    shape.height = random.pick<int64_t>({1, 2, 5, 7});
    shape.width = random.pick<int64_t>({1, 3, 7, 33});
    shape.density = random.pick(kDensities);
    randomize_options(shape, random);
    shape.seed = seed;
    check(shape);
    if (HasFailure()) return;
  }
}

TEST_P(Int8ProductTest, EveryActivationOfEveryOutput) {
  uint64_t seed = 20000;
  for (const Activation activation : kAllActivations) {
    for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
      for (const Dtype dtype : kAllDtypes) {
        for (const bool has_residual : {false, true}) {
          Int8Shape shape{.N = 19, .channels = 40, .images = 7, .width = 5, .layout = layout, .dtype = dtype};
          shape.activation = activation;
          shape.has_residual = has_residual;
          shape.has_nan_scale = true;
          shape.seed = ++seed;
          shape.has_bias = seed % 3 == 0;
          check(shape);
          shape.is_int8 = layout == Layout::kRows && !has_residual;
          if (shape.is_int8) check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(Int8ProductTest, EveryZeroPoint) {
  for (int32_t zero_point = 0; zero_point <= 255; ++zero_point) {
    Int8Shape shape{.N = 5, .channels = 20, .images = 3, .density = 0.5, .zero_point = zero_point};
    shape.seed = static_cast<uint64_t>(zero_point);
    check(shape);
    if (HasFailure()) return;
  }
}

TEST_P(Int8ProductTest, Int8OutputsRoundHalvesToEvenAndClamp) {
  for (uint64_t seed = 30000; seed < 30100; ++seed) {
    Random random(seed);
    Int8Shape shape{.N = 18, .channels = 9, .images = 34, .integers = Integers::kHalves, .is_int8 = true};
    shape.zero_point = random.pick({2, 128, 253});
    shape.y_zero_point = random.pick({0, 3, -4, 120, -125, -128, 127});
    shape.y_inverse_scale = random.pick({1.0f, 1.0f, 16.0f});
    shape.activation = random.pick({Activation::kNone, Activation::kNone, Activation::kRelu});
    shape.has_bias = random.chance(0.5);
    shape.seed = seed;
    check(shape);
    if (HasFailure()) return;
  }
}

// Sums of 65536 times 255 * 128, the largest that the contract allows: 2^31 - 8388608.
TEST_P(Int8ProductTest, LargestSumsAreExact) {
  for (const Integers integers : {Integers::kLargest, Integers::kSmallest}) {
    for (const int32_t zero_point : {0, 128, 255}) {
      for (const uint64_t seed : {1, 2, 3}) {  // rows of -128 and rows of 127
        Int8Shape shape{.N = 5, .channels = kMaxInt8K, .images = 3, .integers = integers, .zero_point = zero_point};
        shape.layout = seed == 1 ? Layout::kColumns : Layout::kRows;
        shape.seed = seed;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// The same products in each place of a quad and of a pair, where 16 bits would saturate.
TEST_P(Int8ProductTest, ExtremesOnAllPackings) {
  for (const Integers integers : {Integers::kLargest, Integers::kSmallest}) {
    for (const uint64_t seed : {1, 2, 3}) {
      for (const int32_t zero_point : {0, 255}) {
        Int8Shape shape{.N = 17, .channels = 333, .images = 17, .integers = integers, .zero_point = zero_point};
        shape.seed = seed;
        check_on_all_packings(shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Int8ProductTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 40000; seed < 40150; ++seed) {
    Random random(seed);
    Int8Shape shape{.N = random.integer(1, 150), .channels = random.integer(1, 70), .images = random.integer(1, 60)};
    shape.width = random.pick<int64_t>({1, 1, 5});
    if (random.chance(0.3)) {  // tiles inside of an image
      shape.images = 2;
      shape.width = 100;
    }
    shape.density = random.pick(kDensities);
    randomize_options(shape, random);
    shape.seed = seed;
    visit([&]<class Args>(const Kernel<Args>& kernel, const std::vector<Int8Packing>& packings) {
      const Int8Packing packing = packings[seed % packings.size()];
      const Case trace(shape, ", ", packing_name(packing));
      const Int8Problem problem(shape);
      const PackedInt8<decltype(Args::weight)> weight(problem.weight(), packing, shape.guard);
      const Int8Output whole = problem.run(kernel, weight);
      const Int8Output parts = problem.run_with<Args>(weight, [&](const Args& args, int64_t num_blocks) {
        run_split(kernel, args, {0, num_blocks}, {0, kernel.num_tiles(args)}, random);
      });
      ASSERT_TRUE(same_bits(whole, parts));
      const Int8Output threads = problem.run_with<Args>(weight, [&](const Args& args, int64_t num_blocks) {
        run_threads(kernel, args, num_blocks, random.integer(2, 8));
      });
      ASSERT_TRUE(same_bits(whole, threads));
    });
    if (HasFailure()) return;
  }
}

TEST_P(Int8ProductTest, NothingToComputeMeansNoTiles) {
  visit([]<class Args>(const Kernel<Args>& kernel, const std::vector<Int8Packing>&) {
    Args args;
    args.x.images = 0;
    EXPECT_EQ(kernel.num_tiles(args), 0);
    args.x.images = 3;
    args.x.width = 0;
    EXPECT_EQ(kernel.num_tiles(args), 0);
  });
}

}  // namespace
}  // namespace sparsecore::test
