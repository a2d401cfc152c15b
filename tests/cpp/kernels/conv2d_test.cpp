#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "kernels/float_problem.h"
#include "kernels/image_problem.h"
#include "numbers.h"
#include "oracle.h"
#include "packed.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

using AnyConv2d = AnyKernel<Conv2dArgs, Conv2dBlockArgs, Conv2dPanelArgs, Conv2dJitArgs>;

struct Shape {
  int64_t batch = 1, channels_per_group = 1, rows_per_group = 1, groups = 1;
  Pair image{1, 1}, filter{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  Fill fill = Fill::kHalf;
  Activation activation = Activation::kNone;
  Dtype dtype = Dtype::kFloat32;
  bool has_bias = false, has_residual = false;
  double special_chance = 0.0;  // of NaN and infinities in x
  int64_t panel_channels = 2;
  Packing packing{.block_rows = 2};  // panels of panel_channels
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;

  Pair output() const { return output_of(*this); }
  bool is_possible() const { return output().h > 0 && output().w > 0; }
  int64_t num_outputs() const { return batch * N() * output().h * output().w; }
  int64_t N() const { return rows_per_group * groups; }
  int64_t channels() const { return channels_per_group * groups; }
  int64_t taps() const { return filter.h * filter.w; }
  int64_t K() const { return channels_per_group * taps(); }
  int64_t panel_cols() const { return std::min(panel_channels, kMaxPanelCols / taps()) * taps(); }
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "seed " << shape.seed << ": batch " << shape.batch << ", " << shape.channels_per_group << " -> "
      << shape.rows_per_group << " in " << shape.groups << " groups";
  print_windows(out, shape);
  print_options(out, shape);
  return out;
}

class Problem {
 public:
  explicit Problem(const Shape& shape) : Problem(shape, Random(shape.seed)) {}

  Csr<float>& weight() { return weight_; }

  // Calls function(kernel, args, what its rows argument counts) with an output of its own.
  template <class Function>
  Numbers run_with(const AnyConv2d& any, Function function) const {
    const Numbers x(shape_.dtype, x_, shape_.guard), residual(shape_.dtype, residual_, shape_.guard);
    Numbers y = Numbers::unwritten(shape_.dtype, shape_.num_outputs(), shape_.guard);
    with_packed(any, weight_, shape_.packing, shape_.guard, [&](const auto& kernel, auto& args, int64_t num_rows) {
      set_sizes(args, shape_);
      args.channels = shape_.channels();
      args.groups = shape_.groups;
      args.dtype = shape_.dtype;
      args.x = x.data();
      args.y = y.data();
      args.residual = shape_.has_residual ? residual.data() : nullptr;
      args.epilogue = epilogue();
      ASSERT_TRUE(kernel.supports(args));
      function(kernel, args, num_rows);
    });
    return y;
  }
  Numbers run(const AnyConv2d& any) const {
    return run_with(any, [&](const auto& kernel, const auto& args, int64_t num_rows) {
      run_all(kernel, args, num_rows, shape_.guard);
    });
  }

  void check(const Numbers& y) const {
    check_planes(y, shape_, shape_.batch * shape_.N(), [&](int64_t plane, Pair pixel, size_t at) {
      const int64_t n = plane % shape_.N();
      Sum sum = output_sum(plane / shape_.N(), n, pixel);
      if (shape_.has_residual) sum.add(1.0, double(residual_[at]));
      return expect_sum(sum, epilogue().bias_of(n), shape_.activation);
    });
  }

 private:
  Problem(const Shape& shape, Random random)
      : shape_(shape),
        weight_(with_whole_blocks(random_csr<float>(random, shape.N(), shape.K(), shape.fill),
                                  shape.packing.csr_block_rows)),
        x_(random_numbers(random, shape.dtype, shape.batch * shape.channels() * shape.image.h * shape.image.w,
                          shape.special_chance)),
        residual_(
            random_numbers(random, shape.dtype, shape.has_residual ? shape.num_outputs() : 0, shape.special_chance)),
        bias_(shape.has_bias ? shape.N() : 0, shape.guard) {
    for (float& bias : bias_) bias = random.number();
  }

  Epilogue epilogue() const { return {shape_.has_bias ? bias_.data() : nullptr, shape_.activation}; }

  Sum output_sum(int64_t image, int64_t n, Pair output) const {
    Sum sum;
    const int64_t first_channel = n / shape_.rows_per_group * shape_.channels_per_group;
    for_each_entry(weight_, n, [&](int64_t k, float value) {
      const int64_t plane = image * shape_.channels() + first_channel + k / shape_.taps();
      const auto pixel = pixel_of(shape_, output, {k / shape_.filter.w % shape_.filter.h, k % shape_.filter.w});
      const int64_t at = plane * shape_.image.h * shape_.image.w + pixel.value_or(0);
      sum.add(double(value), pixel ? double(x_[static_cast<size_t>(at)]) : 0.0);
    });
    return sum;
  }

  Shape shape_;
  Csr<float> weight_;
  std::vector<float> x_, residual_;
  Buffer<float> bias_;
};

class Conv2dTest : public KernelTest<Conv2dArgs, Conv2dBlockArgs, Conv2dPanelArgs, Conv2dJitArgs> {
 protected:
  void check(const Shape& wanted) {
    const Shape shape = fitted(wanted);
    if (!shape.is_possible()) return;
    const Case trace(shape);
    const Problem problem(shape);
    problem.check(problem.run(any_kernel()));
    ++num_checked_;
  }

  // Panels and generated code have no groups; block CSR has whole blocks of rows in each of them.
  Shape fitted(Shape shape) const {
    const auto& row = any_kernel().row;
    if (std::holds_alternative<Kernel<Conv2dPanelArgs>>(row) || std::holds_alternative<Kernel<Conv2dJitArgs>>(row)) {
      shape.groups = 1;
    }
    Random random(shape.seed);
    const int64_t R = random_csr_block_rows(any_kernel(), random);
    shape.packing.csr_block_rows = R;
    shape.packing.panel_cols = shape.panel_cols();
    shape.packing.kernel_h = shape.filter.h, shape.packing.kernel_w = shape.filter.w;
    shape.rows_per_group = (shape.rows_per_group + R - 1) / R * R;
    return shape;
  }

  // What the loops of a sweep leave open.
  void randomize_rest(Shape& shape, Random& random, uint64_t seed) {
    shape.seed = seed;
    shape.fill = random.pick(kAllFills);
    randomize_options(shape, random);
    shape.packing.block_rows = random.pick<int64_t>({1, 2, 3, 64, 256});
    shape.panel_channels = random.pick<int64_t>({1, 2, 5, 40});
  }

  int64_t num_checked_ = 0;
};
SPARSECORE_TEST_EACH_KERNEL(Conv2dTest, conv2d_kernels(), conv2d_block_kernels(), conv2d_panel_kernels(),
                            conv2d_jit_kernels());

// Every square filter, stride, dilation and padding up to one more than the filter, over images from one pixel to
// wider than a vector.
TEST_P(Conv2dTest, SquareFilters) {
  uint64_t seed = 1000;
  for (int64_t taps = 1; taps <= 7; ++taps) {
    for (int64_t stride = 1; stride <= 4; ++stride) {
      for (int64_t dilation = 1; dilation <= 3; ++dilation) {
        for (int64_t padding = 0; padding <= taps + 1; ++padding) {
          for (const Pair image : {Pair{1, 1}, Pair{2, 3}, Pair{5, 4}, Pair{9, 8}, Pair{7, 19}}) {
            Random random(++seed);
            Shape shape;
            randomize_rest(shape, random, seed);
            shape.image = image;
            shape.filter = {taps, taps};
            shape.stride = {stride, stride};
            shape.dilation = {dilation, dilation};
            shape.padding = {padding, padding};
            shape.groups = random.integer(1, 2);
            shape.channels_per_group = random.integer(1, 2);
            shape.rows_per_group = random.integer(1, 2);
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_GT(num_checked_, 1500);
}

// Height and width differ in everything: filter 1x7 and 7x1, strides 1x3, padding beyond the filter on one side ...
TEST_P(Conv2dTest, HeightAndWidthDiffer) {
  for (uint64_t seed = 10000; seed < 14000; ++seed) {
    Random random(seed);
    const auto pair = [&](int64_t low, int64_t high) {
      return Pair{random.integer(low, high), random.integer(low, high)};
    };
    Shape shape;
    randomize_rest(shape, random, seed);
    shape.batch = random.integer(1, 2);
    shape.image = random.chance(0.5) ? pair(1, 6) : pair(1, 21);
    shape.filter = pair(1, 7);
    shape.stride = pair(1, 4);
    shape.dilation = pair(1, 3);
    shape.padding = {random.integer(0, shape.filter.h + 3), random.integer(0, shape.filter.w + 3)};
    shape.groups = random.pick<int64_t>({1, 1, 2, 3, 8});
    shape.channels_per_group = random.integer(1, 3);
    shape.rows_per_group = random.integer(1, 3);
    check(shape);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_checked_, 2000);
}

// Maps around a vector and a tile of 12 vectors of 1, 4, 8 and 16 lanes, with and without columns to drop.
TEST_P(Conv2dTest, MapsAroundTheTile) {
  uint64_t seed = 20000;
  for (const int64_t width : {1, 3, 7, 8, 9, 15, 16, 17, 47, 48, 49, 95, 96, 97, 191, 193}) {
    for (const int64_t height : {1, 2, 3}) {
      for (const int64_t taps : {1, 3}) {
        for (const int64_t padding : {int64_t(0), taps / 2}) {
          for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
            Random random(++seed);
            Shape shape;
            randomize_rest(shape, random, seed);
            shape.guard = guard;
            shape.image = {height, width};
            shape.filter = {std::min(taps, height + 2 * padding), taps};
            shape.padding = {padding, padding};
            shape.channels_per_group = 3;
            shape.rows_per_group = 2;
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

// The maps of networks, whose rows are whole vectors or not, in every stored dtype with and without a residual.
TEST_P(Conv2dTest, EveryDtypeWithAndWithoutResidual) {
  uint64_t seed = 25000;
  for (const int64_t out_width : {7, 8, 10, 14, 19, 28, 56}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const Pair filter : {Pair{3, 3}, Pair{1, 3}, Pair{5, 2}}) {
        for (const Dtype dtype : kAllDtypes) {
          for (const bool has_residual : {false, true}) {
            Random random(++seed);
            Shape shape;
            randomize_rest(shape, random, seed);
            shape.batch = random.integer(1, 2);
            shape.groups = random.pick<int64_t>({1, 1, 2});
            shape.channels_per_group = random.integer(1, 3);
            shape.rows_per_group = random.integer(1, 4);
            shape.filter = filter;
            shape.stride = {random.integer(1, 3), stride};
            shape.dilation = {random.integer(1, 2), random.integer(1, 3)};
            shape.padding = {random.integer(0, filter.h), random.integer(0, filter.w)};
            // From the least image with that output to the largest.
            const int64_t reach = shape.dilation.w * (filter.w - 1) + 1;
            shape.image.w = (out_width - 1) * stride + reach - 2 * shape.padding.w + random.integer(0, stride - 1);
            shape.image.h = random.integer(3, 9);
            shape.dtype = dtype;
            shape.has_residual = has_residual;
            ASSERT_TRUE(!shape.is_possible() || shape.output().w == out_width);
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_GT(num_checked_, 300);
}

TEST_P(Conv2dTest, Depthwise) {
  uint64_t seed = 30000;
  for (const int64_t channels : {1, 2, 7, 33}) {
    for (const int64_t multiplier : {1, 2}) {
      for (const int64_t taps : {1, 3, 5}) {
        for (const int64_t stride : {1, 2}) {
          Random random(++seed);
          Shape shape;
          randomize_rest(shape, random, seed);
          shape.fill = Fill::kFull;
          shape.batch = 2;
          shape.groups = channels;
          shape.rows_per_group = multiplier;
          shape.image = {11, 13};
          shape.filter = {taps, taps};
          shape.stride = {stride, stride};
          shape.padding = {taps / 2, taps / 2};
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Maps or weights so large that an image is packed in several strips, the halo of each reaching into the next.
TEST_P(Conv2dTest, ManyStrips) {
  uint64_t seed = 40000;
  for (const int64_t channels : {40, 700}) {
    for (const Pair image : {Pair{20, 20}, Pair{9, 33}, Pair{61, 67}}) {
      for (const Pair stride : {Pair{1, 1}, Pair{2, 2}, Pair{1, 2}}) {
        for (const Pair dilation : {Pair{1, 1}, Pair{2, 3}}) {
          if (channels == 700 && image.w > 20) continue;  // slow, and nothing new
          Random random(++seed);
          Shape shape;
          randomize_rest(shape, random, seed);
          shape.fill = channels > 100 ? Fill::kTenth : Fill::kHalf;
          shape.batch = 2;
          shape.groups = random.pick<int64_t>({1, 2});
          shape.channels_per_group = channels / shape.groups;
          shape.rows_per_group = 2;
          shape.image = image;
          shape.filter = {3, 3};
          shape.stride = stride;
          shape.dilation = dilation;
          shape.padding = {1, 1};
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// More rows than any chunk of sums that a panel kernel keeps in cache.
TEST_P(Conv2dTest, ManyRows) {
  uint64_t seed = 45000;
  for (const int64_t block_rows : {64, 256}) {
    for (const Pair image : {Pair{3, 7}, Pair{8, 10}}) {
      Shape shape{.channels_per_group = 6, .rows_per_group = 5003, .image = image, .filter = {1, 3}, .padding = {0, 1}};
      shape.fill = Fill::kTenth;
      shape.packing.block_rows = block_rows;
      shape.seed = ++seed;
      shape.has_residual = seed % 2 == 0;
      check(shape);
      if (HasFailure()) return;
    }
  }
}

TEST_P(Conv2dTest, EveryActivationWithAndWithoutBias) {
  uint64_t seed = 50000;
  for (const Activation activation : kAllActivations) {
    for (const bool has_bias : {false, true}) {
      for (const int64_t width : {1, 6, 16, 40}) {
        Shape shape{.batch = 2, .channels_per_group = 4, .rows_per_group = 5, .image = {5, width}, .filter = {3, 3}};
        shape.padding = {1, 1};
        shape.fill = Fill::kRagged;
        shape.activation = activation;
        shape.has_bias = has_bias;
        shape.seed = ++seed;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Conv2dTest, NanAndInfinityInX) {
  for (uint64_t seed = 60000; seed < 60500; ++seed) {
    Random random(seed);
    Shape shape;
    randomize_rest(shape, random, seed);
    shape.special_chance = 0.02;
    shape.batch = 2;
    shape.channels_per_group = 2;
    shape.rows_per_group = 3;
    shape.image = {random.integer(1, 12), random.integer(1, 20)};
    shape.filter = {random.integer(1, 4), random.integer(1, 4)};
    shape.stride = {random.integer(1, 3), random.integer(1, 3)};
    shape.dilation = {random.integer(1, 2), random.integer(1, 2)};
    shape.padding = {random.integer(0, 3), random.integer(0, 3)};
    check(shape);
    if (HasFailure()) return;
  }
}

// Padding is zeros, and zero times an infinite weight is NaN as in a dense convolution.
TEST_P(Conv2dTest, InfiniteWeightsTimesPadding) {
  for (uint64_t seed = 70000; seed < 70100; ++seed) {
    Random random(seed);
    Shape shape{.channels_per_group = 2, .rows_per_group = 3, .image = {5, 9}, .filter = {3, 3}, .padding = {1, 2}};
    shape.stride = {random.integer(1, 2), random.integer(1, 2)};
    shape.fill = Fill::kTenth;
    shape.seed = seed;
    shape = fitted(shape);
    const Case trace(shape);
    Problem problem(shape);
    for (float& value : problem.weight().values) {
      if (random.chance(0.5)) value = std::numeric_limits<float>::infinity();
    }
    problem.check(problem.run(any_kernel()));
    if (HasFailure()) return;
  }
}

TEST_P(Conv2dTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 80000; seed < 80200; ++seed) {
    Random random(seed);
    Shape shape;
    randomize_rest(shape, random, seed);
    shape.batch = random.integer(1, 3);
    shape.groups = random.pick<int64_t>({1, 2, 5});
    shape.channels_per_group = random.pick<int64_t>({1, 3, 60});
    shape.rows_per_group = random.integer(1, 6);
    shape.image = {random.integer(1, 20), random.integer(1, 40)};
    shape.filter = {random.integer(1, 3), random.integer(1, 3)};
    shape.stride = {random.integer(1, 2), random.integer(1, 2)};
    shape.padding = {1, 1};
    shape = fitted(shape);
    if (!shape.is_possible()) continue;
    const Case trace(shape);
    check_splits(Problem(shape), any_kernel(), random);
    if (HasFailure()) return;
  }
}

TEST_P(Conv2dTest, NothingToComputeMeansNoTiles) {
  const Shape shapes[] = {{.batch = 0, .image = {3, 3}}, {.image = {2, 2}, .filter = {3, 3}}};
  for (const Shape& wanted : shapes) {
    const Shape shape = fitted(wanted);
    const Case trace(shape);
    Problem(shape).run_with(
        any_kernel(), [](const auto& kernel, const auto& args, int64_t) { EXPECT_EQ(kernel.num_tiles(args), 0); });
  }
}

// No channels at all: every output is the bias.
TEST_P(Conv2dTest, NoChannels) {
  Shape shape{.channels_per_group = 0, .rows_per_group = 3, .image = {4, 5}, .filter = {3, 3}, .padding = {1, 1}};
  shape.has_bias = true;
  check(shape);
}

}  // namespace
}  // namespace sparsecore::test
