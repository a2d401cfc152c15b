#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "harness.h"
#include "kernels/float_problem.h"
#include "kernels/image_problem.h"
#include "numbers.h"
#include "oracle.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

using AnyPool2d = AnyKernel<Pool2dArgs>;

struct Shape {
  PoolMode mode = PoolMode::kMax;
  int64_t batch = 1, channels = 1;
  Pair image{1, 1}, filter{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  bool ceil_mode = false, count_include_pad = true;
  int64_t divisor_override = 0;
  Dtype dtype = Dtype::kFloat32;
  double special_chance = 0.0;  // of NaN and infinities in x
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;

  Pair output() const { return output_of(*this, ceil_mode); }
  bool is_possible() const { return output().h > 0 && output().w > 0; }
  int64_t num_outputs() const { return batch * channels * output().h * output().w; }
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "seed " << shape.seed << ": " << (shape.mode == PoolMode::kMax ? "max" : "average") << ", batch "
      << shape.batch << ", channels " << shape.channels;
  print_windows(out, shape);
  return out << (shape.ceil_mode ? ", ceil" : "") << (shape.count_include_pad ? ", with padding" : ", without padding")
             << ", divisor " << shape.divisor_override << ", " << dtype_name(shape.dtype) << ", specials "
             << shape.special_chance << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

class Problem {
 public:
  explicit Problem(const Shape& shape) : shape_(shape) {
    Random random(shape.seed);
    x_ = random_numbers(random, shape.dtype, shape.batch * shape.channels * shape.image.h * shape.image.w,
                        shape.special_chance);
  }

  // Calls function(kernel, args, channels) with an output of its own.
  template <class Function>
  Numbers run_with(const AnyPool2d& any, Function function) const {
    const Numbers x(shape_.dtype, x_, shape_.guard);
    Numbers y = Numbers::unwritten(shape_.dtype, shape_.num_outputs(), shape_.guard);
    Pool2dArgs args;
    args.mode = shape_.mode;
    set_sizes(args, shape_);
    args.channels = shape_.channels;
    args.count_include_pad = shape_.count_include_pad;
    args.divisor_override = shape_.divisor_override;
    args.dtype = shape_.dtype;
    args.x = x.data();
    args.y = y.data();
    const auto& kernel = std::get<0>(any.row);
    EXPECT_TRUE(kernel.supports(args));
    function(kernel, args, shape_.channels);
    return y;
  }
  Numbers run(const AnyPool2d& any) const {
    return run_with(any, [&](const auto& kernel, const auto& args, int64_t num_rows) {
      run_all(kernel, args, num_rows, shape_.guard);
    });
  }

  void check(const Numbers& y) const {
    check_planes(y, shape_, shape_.batch * shape_.channels,
                 [&](int64_t plane, Pair pixel, size_t) { return expect(plane, pixel); });
  }

 private:
  Expected expect(int64_t plane, Pair output) const {
    double largest = -std::numeric_limits<double>::infinity();
    int64_t inside = 0, padded = 0;
    Sum sum;
    for (Pair tap{0, 0}; tap.h < shape_.filter.h; ++tap.h) {
      for (tap.w = 0; tap.w < shape_.filter.w; ++tap.w) {
        const int64_t h = output.h * shape_.stride.h - shape_.padding.h + tap.h * shape_.dilation.h;
        const int64_t w = output.w * shape_.stride.w - shape_.padding.w + tap.w * shape_.dilation.w;
        padded += h < shape_.image.h + shape_.padding.h && w < shape_.image.w + shape_.padding.w;
        const auto pixel = pixel_of(shape_, output, tap);
        if (!pixel) continue;
        const double value = double(x_[static_cast<size_t>(plane * shape_.image.h * shape_.image.w + *pixel)]);
        if (!(value <= largest)) largest = std::isnan(largest) ? largest : value;
        sum.add(1.0, value);
        ++inside;
      }
    }
    if (shape_.mode == PoolMode::kMax) return {largest, 0.0};
    const double counted = double(shape_.count_include_pad ? padded : inside);
    const double divisor = shape_.divisor_override != 0 ? double(shape_.divisor_override) : counted;
    const double error = std::isfinite(sum.magnitude) ? gamma(sum.terms + 2) * sum.magnitude + kUnderflow : 0.0;
    return {sum.value / divisor, error / std::fabs(divisor)};
  }

  Shape shape_;
  std::vector<float> x_;
};

class Pool2dTest : public KernelTest<Pool2dArgs> {
 protected:
  void check(const Shape& shape) {
    if (!shape.is_possible()) return;
    const Case trace(shape);
    const Problem problem(shape);
    problem.check(problem.run(any_kernel()));
    ++num_checked_;
  }

  // Everything that the loops of a sweep leave open.
  static Shape random_options(Random& random, uint64_t seed) {
    Shape shape;
    shape.mode = random.chance(0.5) ? PoolMode::kMax : PoolMode::kAverage;
    shape.ceil_mode = random.chance(0.5);
    shape.count_include_pad = random.chance(0.5);
    shape.divisor_override = random.pick<int64_t>({0, 0, 0, 1, 7, -3});
    shape.dtype = random.pick({Dtype::kFloat32, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16});
    shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    shape.batch = random.integer(1, 2);
    shape.channels = random.integer(1, 3);
    shape.seed = seed;
    return shape;
  }
  // Padding of at most half of a window; dilation for max only.
  static void random_windows(Shape& shape, Random& random, int64_t largest) {
    const auto pair = [&](int64_t high) { return Pair{random.integer(1, high), random.integer(1, high)}; };
    shape.filter = pair(largest);
    shape.stride = pair(4);
    if (shape.mode == PoolMode::kMax && random.chance(0.5)) shape.dilation = pair(3);
    shape.padding.h = random.integer(0, (shape.dilation.h * (shape.filter.h - 1) + 1) / 2);
    shape.padding.w = random.integer(0, (shape.dilation.w * (shape.filter.w - 1) + 1) / 2);
  }

  int64_t num_checked_ = 0;
};
SPARSECORE_TEST_EACH_KERNEL(Pool2dTest, pool2d_kernels());

TEST_P(Pool2dTest, AnyWindowStridePaddingAndDilation) {
  for (uint64_t seed = 1000; seed < 6000; ++seed) {
    Random random(seed);
    Shape shape = random_options(random, seed);
    random_windows(shape, random, 6);
    shape.image = {random.integer(1, 12), random.integer(1, 40)};
    check(shape);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_checked_, 3000);
}

// Around one vector and four of them, with every stride that has a path of its own.
TEST_P(Pool2dTest, MapsOfEveryWidth) {
  uint64_t seed = 10000;
  for (int64_t width = 1; width <= 140; ++width) {
    for (const PoolMode mode : {PoolMode::kMax, PoolMode::kAverage}) {
      for (const int64_t taps : {2, 3}) {
        for (const int64_t stride : {1, 2, 3}) {
          Random random(++seed);
          Shape shape = random_options(random, seed);
          shape.mode = mode;
          shape.image = {5, width};
          shape.filter = {taps, taps};
          shape.stride = {stride, stride};
          shape.padding = {random.integer(0, 1), random.integer(0, 1)};
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(num_checked_, 1500);
}

// Planes of several tiles, and tiles of more combined rows than are kept at a time.
TEST_P(Pool2dTest, LargePlanes) {
  uint64_t seed = 20000;
  for (const Pair image : {Pair{150, 140}, Pair{3, 20000}, Pair{20000, 3}}) {
    for (const int64_t stride : {1, 2, 3}) {
      for (const PoolMode mode : {PoolMode::kMax, PoolMode::kAverage}) {
        Random random(++seed);
        Shape shape = random_options(random, seed);
        shape.mode = mode;
        shape.image = image;
        shape.filter = {3, 3};
        shape.stride = {stride, stride};
        shape.padding = {1, 1};
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// All of a plane, which has a path of its own, or almost all of it.
TEST_P(Pool2dTest, GlobalAverage) {
  uint64_t seed = 30000;
  for (int64_t height = 1; height <= 20; ++height) {
    for (const int64_t width : {1, 2, 7, 8, 13, 16, 17, 56, 257}) {
      for (const Dtype dtype : kAllDtypes) {
        for (const int64_t less : {0, 0, 1}) {
          Random random(++seed);
          Shape shape = random_options(random, seed);
          shape.mode = PoolMode::kAverage;
          shape.ceil_mode = false;
          shape.dtype = dtype;
          shape.image = {height, width};
          shape.filter = {std::max<int64_t>(height - less, 1), width};
          shape.stride = {height, width};
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Windows larger than the image, which ceil_mode and padding allow; strides beyond the image.
TEST_P(Pool2dTest, WindowsAndStridesBeyondTheImage) {
  for (uint64_t seed = 40000; seed < 41000; ++seed) {
    Random random(seed);
    Shape shape = random_options(random, seed);
    random_windows(shape, random, 9);
    shape.stride = {random.integer(1, 60), random.pick<int64_t>({1, 2, 5, 60, 60000})};
    shape.image = {random.integer(1, 5), random.integer(1, 5)};
    check(shape);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_checked_, 300);
}

TEST_P(Pool2dTest, NanAndInfinity) {
  for (uint64_t seed = 50000; seed < 51000; ++seed) {
    Random random(seed);
    Shape shape = random_options(random, seed);
    random_windows(shape, random, 4);
    shape.special_chance = random.pick({0.02, 0.3});
    shape.image = {random.integer(1, 12), random.integer(1, 40)};
    check(shape);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_checked_, 500);
}

TEST_P(Pool2dTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 60000; seed < 60150; ++seed) {
    Random random(seed);
    Shape shape = random_options(random, seed);
    random_windows(shape, random, 4);
    shape.channels = random.integer(1, 9);
    shape.image = random.chance(0.2) ? Pair{200, 150} : Pair{random.integer(1, 12), random.integer(1, 40)};
    if (random.chance(0.2)) shape.filter = shape.image, shape.padding = {0, 0}, shape.dilation = {1, 1};
    if (!shape.is_possible()) continue;
    const Case trace(shape);
    check_splits(Problem(shape), any_kernel(), random);
    if (HasFailure()) return;
  }
}

TEST_P(Pool2dTest, NothingToComputeMeansNoTiles) {
  for (const Shape& shape : {Shape{.batch = 0, .image = {3, 3}}, Shape{.image = {2, 2}, .filter = {3, 3}}}) {
    Problem(shape).run_with(
        any_kernel(), [](const auto& kernel, const auto& args, int64_t) { EXPECT_EQ(kernel.num_tiles(args), 0); });
  }
}

}  // namespace
}  // namespace sparsecore::test
