#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <vector>

#include "harness.h"
#include "kernels/float_problem.h"
#include "numbers.h"
#include "oracle.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

using AnyScaleShift = AnyKernel<ScaleShiftArgs>;

struct Shape {
  int64_t batch = 1, channels = 1, columns = 1;
  Dtype dtype = Dtype::kFloat32;
  Activation activation = Activation::kNone;
  bool has_scale = false, is_scale_per_image = false, has_bias = false, has_residual = false;
  double special_chance = 0.0;  // of NaN and infinities in x, scale and residual
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;

  int64_t size() const { return batch * channels * columns; }
  int64_t num_scales() const { return !has_scale ? 0 : is_scale_per_image ? batch * channels : channels; }
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << "seed " << shape.seed << ": batch " << shape.batch << ", channels " << shape.channels << ", columns "
             << shape.columns << ", " << dtype_name(shape.dtype) << ", " << activation_name(shape.activation)
             << (shape.has_scale ? shape.is_scale_per_image ? ", scale per image" : ", scale" : "")
             << (shape.has_bias ? ", shift" : "") << (shape.has_residual ? ", residual" : "") << ", specials "
             << shape.special_chance << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

class Problem {
 public:
  explicit Problem(const Shape& shape) : Problem(shape, Random(shape.seed)) {}

  std::vector<float>& x() { return x_; }

  // Calls function(kernel, args, channels) with an output of its own.
  template <class Function>
  Numbers run_with(const AnyScaleShift& any, Function function) const {
    const Numbers x(shape_.dtype, x_, shape_.guard), residual(shape_.dtype, residual_, shape_.guard);
    Numbers y = Numbers::unwritten(shape_.dtype, shape_.size(), shape_.guard);
    ScaleShiftArgs args;
    args.batch = shape_.batch;
    args.channels = shape_.channels;
    args.columns = shape_.columns;
    args.dtype = shape_.dtype;
    args.x = x.data();
    args.y = y.data();
    args.residual = shape_.has_residual ? residual.data() : nullptr;
    args.scale = shape_.has_scale ? scale_.data() : nullptr;
    args.scale_batch_stride = shape_.is_scale_per_image ? shape_.channels : 0;
    args.epilogue = {shape_.has_bias ? shift_.data() : nullptr, shape_.activation};
    const auto& kernel = std::get<0>(any.row);
    EXPECT_TRUE(kernel.supports(args));
    function(kernel, args, shape_.channels);
    return y;
  }
  Numbers run(const AnyScaleShift& any) const {
    return run_with(any, [&](const auto& kernel, const auto& args, int64_t num_rows) {
      run_all(kernel, args, num_rows, shape_.guard);
    });
  }

  void check(const Numbers& y) const {
    for (int64_t at = 0; at < shape_.size(); ++at) {
      const int64_t plane = at / shape_.columns, channel = plane % shape_.channels;
      const float scale = shape_.has_scale ? scale_[shape_.is_scale_per_image ? plane : channel] : 1.0f;
      Sum sum;
      sum.add(double(scale), double(x_[static_cast<size_t>(at)]));
      if (shape_.has_residual) sum.add(1.0, double(residual_[static_cast<size_t>(at)]));
      const Expected expected = expect_sum(sum, shape_.has_bias ? shift_[channel] : 0.0f, shape_.activation);
      ASSERT_TRUE(is_close(y, at, expected)) << describe(y, at, expected) << " at " << at;
    }
  }

 private:
  Problem(const Shape& shape, Random random)
      : shape_(shape),
        x_(random_numbers(random, shape.dtype, shape.size(), shape.special_chance)),
        residual_(random_numbers(random, shape.dtype, shape.has_residual ? shape.size() : 0, shape.special_chance)),
        scale_(shape.num_scales(), shape.guard),
        shift_(shape.has_bias ? shape.channels : 0, shape.guard) {
    for (float& scale : scale_) scale = 9.0f * random.number_or_special(shape.special_chance);
    for (float& shift : shift_) shift = 4.0f * random.number();
  }

  Shape shape_;
  std::vector<float> x_, residual_;
  Buffer<float> scale_, shift_;
};

class ScaleShiftTest : public KernelTest<ScaleShiftArgs> {
 protected:
  void check(const Shape& shape) {
    const Case trace(shape);
    const Problem problem(shape);
    problem.check(problem.run(any_kernel()));
  }

  static Shape random_shape(Random& random, uint64_t seed) {
    Shape shape{.batch = random.integer(1, 3), .channels = random.integer(1, 5)};
    shape.columns = random.pick<int64_t>({1, 2, 3, 49, 100});
    shape.activation = random.pick(kAllActivations);
    shape.has_scale = random.chance(0.7);
    shape.is_scale_per_image = random.chance(0.5);
    shape.has_bias = random.chance(0.5);
    shape.has_residual = random.chance(0.4);
    shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    shape.dtype = random.pick(kAllDtypes);
    shape.seed = seed;
    return shape;
  }
};
SPARSECORE_TEST_EACH_KERNEL(ScaleShiftTest, scale_shift_kernels());

// Around one vector and four of them, in planes and side by side.
TEST_P(ScaleShiftTest, PlanesAndRowsOfEveryLength) {
  uint64_t seed = 1000;
  for (int64_t length = 1; length <= 140; ++length) {
    for (const bool is_row : {false, true}) {
      for (const Dtype dtype : kAllDtypes) {
        for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
          Random random(++seed);
          Shape shape = random_shape(random, seed);
          shape.channels = is_row ? length : 3;
          shape.columns = is_row ? 1 : length;
          shape.dtype = dtype;
          shape.guard = guard;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(ScaleShiftTest, EveryCombinationOfArguments) {
  uint64_t seed = 5000;
  for (const Activation activation : kAllActivations) {
    for (const Dtype dtype : kAllDtypes) {
      for (int options = 0; options < 16; ++options) {
        for (const int64_t columns : {1, 53}) {
          Shape shape{.batch = 2, .channels = 7, .columns = columns, .dtype = dtype, .activation = activation};
          shape.has_scale = (options & 1) != 0;
          shape.is_scale_per_image = (options & 2) != 0;
          shape.has_bias = (options & 4) != 0;
          shape.has_residual = (options & 8) != 0;
          shape.seed = ++seed;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Planes of more than one tile.
TEST_P(ScaleShiftTest, LargePlanes) {
  uint64_t seed = 10000;
  for (const int64_t columns : {16383, 16384, 16385, 40000}) {
    Random random(++seed);
    Shape shape = random_shape(random, seed);
    shape.channels = 2;
    shape.columns = columns;
    check(shape);
  }
}

TEST_P(ScaleShiftTest, NanAndInfinity) {
  for (uint64_t seed = 20000; seed < 20300; ++seed) {
    Random random(seed);
    Shape shape = random_shape(random, seed);
    shape.special_chance = 0.05;
    check(shape);
    if (HasFailure()) return;
  }
}

TEST_P(ScaleShiftTest, WhatIsNullChangesNoBit) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const int64_t columns : {1, 100}) {
    Shape shape{.channels = 5, .columns = columns};
    Problem problem(shape);
    const float numbers[] = {-0.0f, 0.0f, kInf, -kInf, std::numeric_limits<float>::denorm_min()};
    for (size_t i = 0; i < problem.x().size(); ++i) problem.x()[i] = numbers[i % 5];
    EXPECT_TRUE(same_bits(problem.run(any_kernel()), Numbers(Dtype::kFloat32, problem.x(), Guard::kAfter)));
  }
}

TEST_P(ScaleShiftTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 30000; seed < 30100; ++seed) {
    Random random(seed);
    Shape shape = random_shape(random, seed);
    shape.channels = random.integer(1, 70);
    shape.columns = random.pick<int64_t>({1, 1, 7, 100, 17000});
    const Case trace(shape);
    check_splits(Problem(shape), any_kernel(), random);
    if (HasFailure()) return;
  }
}

TEST_P(ScaleShiftTest, NothingToComputeMeansNoTiles) {
  for (const Shape& shape : {Shape{.batch = 0, .columns = 3}, Shape{.columns = 0}}) {
    Problem(shape).run_with(
        any_kernel(), [](const auto& kernel, const auto& args, int64_t) { EXPECT_EQ(kernel.num_tiles(args), 0); });
  }
}

}  // namespace
}  // namespace sparsecore::test
