#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "harness.h"
#include "kernels/float_problem.h"
#include "kernels/image_problem.h"
#include "numbers.h"
#include "oracle.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

struct Shape {
  int64_t batch = 1, channels = 1, multiplier = 1;
  Pair image{1, 1}, filter{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  Activation activation = Activation::kNone;
  Dtype dtype = Dtype::kFloat32;
  bool has_bias = false, has_residual = false;
  double special_chance = 0.0;  // of NaN and infinities in x
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;

  Pair output() const { return output_of(*this); }
  bool is_possible() const { return output().h > 0 && output().w > 0; }
  int64_t N() const { return channels * multiplier; }
  int64_t num_outputs() const { return batch * N() * output().h * output().w; }
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "seed " << shape.seed << ": batch " << shape.batch << ", " << shape.channels << " channels times "
      << shape.multiplier;
  print_windows(out, shape);
  return out << ", " << dtype_name(shape.dtype) << ", " << activation_name(shape.activation)
             << (shape.has_bias ? ", bias" : "") << (shape.has_residual ? ", residual" : "") << ", specials "
             << shape.special_chance << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

class Problem {
 public:
  explicit Problem(const Shape& shape) : Problem(shape, Random(shape.seed)) {}

  Buffer<float>& weight() { return weight_; }

  // Calls function(kernel, args, N) with an output of its own.
  template <class Function>
  Numbers run_with(const AnyKernel<DepthwiseArgs>& any, Function function) const {
    const Numbers x(shape_.dtype, x_, shape_.guard), residual(shape_.dtype, residual_, shape_.guard);
    Numbers y = Numbers::unwritten(shape_.dtype, shape_.num_outputs(), shape_.guard);
    DepthwiseArgs args;
    set_sizes(args, shape_);
    args.channels = shape_.channels;
    args.multiplier = shape_.multiplier;
    args.weight = weight_.data();
    args.dtype = shape_.dtype;
    args.x = x.data();
    args.y = y.data();
    args.residual = shape_.has_residual ? residual.data() : nullptr;
    args.epilogue = epilogue();
    const Kernel<DepthwiseArgs>& kernel = std::get<0>(any.row);
    EXPECT_TRUE(kernel.supports(args));
    function(kernel, args, shape_.N());
    return y;
  }
  Numbers run(const AnyKernel<DepthwiseArgs>& any) const {
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
        weight_(shape.N() * shape.filter.h * shape.filter.w, shape.guard),
        x_(random_numbers(random, shape.dtype, shape.batch * shape.channels * shape.image.h * shape.image.w,
                          shape.special_chance)),
        residual_(
            random_numbers(random, shape.dtype, shape.has_residual ? shape.num_outputs() : 0, shape.special_chance)),
        bias_(shape.has_bias ? shape.N() : 0, shape.guard) {
    for (float& value : weight_) value = random.number();
    for (float& bias : bias_) bias = random.number();
  }

  Epilogue epilogue() const { return {shape_.has_bias ? bias_.data() : nullptr, shape_.activation}; }

  Sum output_sum(int64_t image, int64_t n, Pair output) const {
    Sum sum;
    const int64_t plane = image * shape_.channels + n / shape_.multiplier;
    for (Pair tap{0, 0}; tap.h < shape_.filter.h; ++tap.h) {
      for (tap.w = 0; tap.w < shape_.filter.w; ++tap.w) {
        const auto pixel = pixel_of(shape_, output, tap);
        const int64_t at = plane * shape_.image.h * shape_.image.w + pixel.value_or(0);
        sum.add(double(weight_[(n * shape_.filter.h + tap.h) * shape_.filter.w + tap.w]),
                pixel ? double(x_[static_cast<size_t>(at)]) : 0.0);
      }
    }
    return sum;
  }

  Shape shape_;
  Buffer<float> weight_;
  std::vector<float> x_, residual_;
  Buffer<float> bias_;
};

class DepthwiseTest : public KernelTest<DepthwiseArgs> {
 protected:
  void check(const Shape& shape) {
    if (!shape.is_possible()) return;
    const Case trace(shape);
    const Problem problem(shape);
    problem.check(problem.run(any_kernel()));
    ++num_checked_;
  }

  // What the loops of a sweep leave open.
  static Shape random_rest(Random& random, uint64_t seed) {
    Shape shape;
    randomize_options(shape, random);
    shape.seed = seed;
    return shape;
  }

  int64_t num_checked_ = 0;
};
SPARSECORE_TEST_EACH_KERNEL(DepthwiseTest, depthwise_kernels());

// Every width around the vectors and every height around the lines that are computed at once.
TEST_P(DepthwiseTest, EverySizeOfImage) {
  uint64_t seed = 1000;
  for (const int64_t taps : {3, 5, 7}) {
    for (const int64_t stride : {1, 2}) {
      for (int64_t size = 1; size <= 40; ++size) {
        Random random(++seed);
        Shape shape = random_rest(random, seed);
        shape.channels = random.integer(1, 3);
        shape.image = random.chance(0.5) ? Pair{size, random.integer(1, 40)} : Pair{random.integer(1, 40), size};
        shape.filter = {taps, taps};
        shape.stride = {stride, stride};
        shape.padding = {taps / 2, taps / 2};
        check(shape);
        shape.image = {size, size};
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// Height and width differ in everything, padding may be larger than the filter.
TEST_P(DepthwiseTest, AnyFilterStrideDilationAndPadding) {
  for (uint64_t seed = 10000; seed < 14000; ++seed) {
    Random random(seed);
    const auto pair = [&](int64_t low, int64_t high) {
      return Pair{random.integer(low, high), random.integer(low, high)};
    };
    Shape shape = random_rest(random, seed);
    shape.batch = random.integer(1, 2);
    shape.channels = random.integer(1, 3);
    shape.multiplier = random.pick<int64_t>({1, 1, 2, 3});
    shape.image = random.chance(0.5) ? pair(1, 7) : pair(1, 40);
    shape.filter = pair(1, 7);
    shape.stride = pair(1, 4);
    shape.dilation = random.chance(0.5) ? Pair{1, 1} : pair(1, 3);
    shape.padding = {random.integer(0, shape.filter.h + 3), random.integer(0, shape.filter.w + 3)};
    check(shape);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_checked_, 2000);
}

TEST_P(DepthwiseTest, FiltersThatAreNotSquare) {
  uint64_t seed = 20000;
  for (const Pair filter : {Pair{3, 5}, Pair{5, 3}, Pair{1, 7}, Pair{7, 1}, Pair{3, 1}, Pair{2, 4}, Pair{9, 11}}) {
    for (const Pair stride : {Pair{1, 1}, Pair{2, 2}, Pair{1, 2}, Pair{2, 1}, Pair{3, 3}}) {
      for (const Dtype dtype : kAllDtypes) {
        Random random(++seed);
        Shape shape = random_rest(random, seed);
        shape.dtype = dtype;
        shape.channels = 2;
        shape.image = {random.integer(7, 20), random.integer(7, 40)};
        shape.filter = filter;
        shape.stride = stride;
        shape.padding = {filter.h / 2, filter.w / 2};
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// The maps of networks, and some so large or so wide that an image is several bands.
TEST_P(DepthwiseTest, MapsOfNetworks) {
  uint64_t seed = 30000;
  for (const Pair image : {Pair{7, 7}, Pair{14, 14}, Pair{28, 28}, Pair{56, 56}, Pair{112, 112}, Pair{9, 1000},
                           Pair{700, 5}, Pair{301, 8}}) {
    for (const int64_t taps : {3, 5, 7}) {
      for (const int64_t stride : {1, 2}) {
        Random random(++seed);
        Shape shape = random_rest(random, seed);
        shape.batch = image.h < 20 ? 3 : 1;
        shape.channels = image.h < 20 ? 20 : 2;
        shape.image = image;
        shape.filter = {taps, taps};
        shape.stride = {stride, stride};
        shape.padding = {taps / 2, taps / 2};
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(DepthwiseTest, EveryActivationDtypeBiasAndResidual) {
  uint64_t seed = 40000;
  for (const Activation activation : kAllActivations) {
    for (const Dtype dtype : kAllDtypes) {
      for (const bool has_bias : {false, true}) {
        for (const bool has_residual : {false, true}) {
          for (const int64_t width : {1, 7, 16, 37}) {
            Shape shape{.batch = 2, .channels = 3, .image = {5, width}, .filter = {3, 3}, .padding = {1, 1}};
            shape.activation = activation;
            shape.dtype = dtype;
            shape.has_bias = has_bias;
            shape.has_residual = has_residual;
            shape.seed = ++seed;
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_P(DepthwiseTest, NanAndInfinityInX) {
  for (uint64_t seed = 50000; seed < 50500; ++seed) {
    Random random(seed);
    Shape shape = random_rest(random, seed);
    shape.special_chance = 0.02;
    shape.channels = 3;
    shape.image = {random.integer(1, 12), random.integer(1, 20)};
    shape.filter = {random.integer(1, 5), random.integer(1, 5)};
    shape.stride = {random.integer(1, 3), random.integer(1, 3)};
    shape.padding = {random.integer(0, 3), random.integer(0, 3)};
    check(shape);
    if (HasFailure()) return;
  }
}

// Padding is zeros, and zero times an infinite weight is NaN as in any dense convolution.
TEST_P(DepthwiseTest, InfiniteWeightsTimesPadding) {
  for (uint64_t seed = 60000; seed < 60100; ++seed) {
    Random random(seed);
    Shape shape{.channels = 3, .image = {5, random.integer(1, 20)}, .filter = {3, 3}, .padding = {1, 2}};
    shape.stride = {random.integer(1, 2), random.integer(1, 2)};
    shape.seed = seed;
    const Case trace(shape);
    Problem problem(shape);
    for (float& value : problem.weight()) {
      if (random.chance(0.3)) value = std::numeric_limits<float>::infinity();
    }
    problem.check(problem.run(any_kernel()));
    if (HasFailure()) return;
  }
}

TEST_P(DepthwiseTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 70000; seed < 70200; ++seed) {
    Random random(seed);
    Shape shape = random_rest(random, seed);
    shape.batch = random.integer(1, 3);
    shape.channels = random.pick<int64_t>({1, 3, 40});
    shape.multiplier = random.integer(1, 2);
    const bool is_small = shape.channels == 40;
    shape.image = {random.integer(1, is_small ? 12 : 90), random.integer(1, is_small ? 12 : 90)};
    const int64_t taps = random.pick<int64_t>({1, 2, 3, 5, 7});
    shape.filter = {taps, taps};
    shape.stride = {random.integer(1, 2), random.integer(1, 2)};
    shape.padding = {taps / 2, taps / 2};
    if (!shape.is_possible()) continue;
    const Case trace(shape);
    check_splits(Problem(shape), any_kernel(), random);
    if (HasFailure()) return;
  }
}

TEST_P(DepthwiseTest, NothingToComputeMeansNoTiles) {
  for (const Shape& shape : {Shape{.batch = 0, .image = {3, 3}}, Shape{.image = {2, 2}, .filter = {3, 3}}}) {
    const Case trace(shape);
    Problem(shape).run_with(
        any_kernel(), [](const auto& kernel, const auto& args, int64_t) { EXPECT_EQ(kernel.num_tiles(args), 0); });
  }
}

// One plane is as many tiles as it has bands, so that few channels with large maps still make work for many threads.
TEST_P(DepthwiseTest, LargeMapsAreSeveralTiles) {
  const Shape shape{.channels = 1, .image = {112, 112}, .filter = {3, 3}, .padding = {1, 1}};
  Problem(shape).run_with(any_kernel(),
                          [](const auto& kernel, const auto& args, int64_t) { EXPECT_GE(kernel.num_tiles(args), 4); });
}

}  // namespace
}  // namespace sparsecore::test
