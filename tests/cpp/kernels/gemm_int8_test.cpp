#include <gtest/gtest.h>

#include "int8_problem.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

class Problem {
 public:
  explicit Problem(const Int8Shape& shape) : Problem(shape, Random(shape.seed)) {}

  const GemmInt8Args& args() const { return args_; }

  Buffer<float> run(const Kernel<GemmInt8Args>& kernel) const {
    return run_with([&](const GemmInt8Args& args) { run_all(kernel, args, args.N, rows_.shape.guard); });
  }
  template <class Function>
  Buffer<float> run_with(Function function) const {
    Buffer<float> y = rows_.output();
    GemmInt8Args args = args_;
    args.y = y.data();
    function(args);
    return y;
  }

  void check(const Buffer<float>& y) const {
    for (int64_t m = 0; m < args_.M; ++m) {
      for (int64_t n = 0; n < args_.N; ++n) {
        int64_t acc = 0;
        for (int64_t k = 0; k < args_.K; ++k) acc += int64_t(rows_.x[m * rows_.ldx + k]) * weight_[n * args_.K + k];
        rows_.check_element(y, m, n, acc);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
    rows_.check_padding(y);
  }

 private:
  Problem(const Int8Shape& shape, Random random) : rows_(shape, random), weight_(shape.N * shape.K, shape.guard) {
    for (int8_t& weight : weight_) weight = random_value<int8_t>(random);
    rows_.set_weights(weight_);
    args_.x = rows_.x.data();
    args_.x_scale = rows_.x_scale.data();
    args_.M = shape.M;
    args_.N = shape.N;
    args_.K = shape.K;
    args_.ldx = rows_.ldx;
    args_.weight = weight_.data();
    args_.weight_scale = rows_.weight_scale.data();
    args_.ldy = rows_.ldy;
    args_.epilogue = rows_.epilogue();
  }

  Int8Problem rows_;
  Buffer<int8_t> weight_;
  GemmInt8Args args_;
};

class GemmInt8Test : public KernelTest<GemmInt8Args> {
 protected:
  void check(const Int8Shape& shape) {
    const Case trace(shape);
    const Problem problem(shape);
    if (!kernel().supports(problem.args())) return;
    problem.check(problem.run(kernel()));
    ++num_checked_;
  }
  int64_t num_checked_ = 0;
};
SPARSECORE_TEST_EACH_KERNEL(GemmInt8Test, gemm_int8_kernels());

TEST_P(GemmInt8Test, AroundTheTile) {
  uint64_t seed = 1000;
  for (const int64_t M : kInt8Rows) {
    for (const int64_t N : kInt8Features) {
      for (const int64_t K : kInt8Reduced) {
        for (const int64_t ldx_step : {1, 16}) {
          Random random(++seed);
          Int8Shape shape{.M = M, .N = N, .K = K};
          shape.activation = random.pick(kAllActivations);
          shape.has_bias = random.chance(0.5);
          shape.ldx_step = ldx_step;
          shape.padding = random.chance(0.5) ? 0 : random.integer(1, 9);
          shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
          shape.seed = seed;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GT(num_checked_, 2000) << "a kernel should support the padding that the bindings make";
}

TEST_P(GemmInt8Test, EveryActivationWithAndWithoutBias) {
  uint64_t seed = 10000;
  for (const Activation activation : kAllActivations) {
    for (const bool has_bias : {false, true}) {
      for (const int64_t M : {1, 4, 18}) {
        for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
          Int8Shape shape{.M = M, .N = 17, .K = 40, .activation = activation, .has_bias = has_bias};
          shape.has_nan_scale = true;
          shape.guard = guard;
          shape.seed = ++seed;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Sums of 65536 times 255 * 128, the largest that the contract allows: 2^31 - 8388608.
TEST_P(GemmInt8Test, LargestSumsAreExact) {
  for (const Integers integers : {Integers::kLargest, Integers::kSmallest}) {
    for (const int64_t M : {1, 2, 5}) {
      for (const int64_t K : {kMaxInt8K - 1, kMaxInt8K}) {
        check({.M = M, .N = 4, .K = K, .integers = integers, .seed = 1});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(GemmInt8Test, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 20000; seed < 20200; ++seed) {
    Random random(seed);
    Int8Shape shape{.M = random.integer(1, 200), .N = random.integer(1, 40), .K = random.integer(0, 70)};
    shape.activation = random.pick(kAllActivations);
    shape.has_bias = random.chance(0.5);
    shape.padding = random.integer(0, 3);
    shape.seed = seed;
    const Case trace(shape);
    const Problem problem(shape);
    ASSERT_TRUE(kernel().supports(problem.args()));
    const Buffer<float> whole = problem.run(kernel());
    const Buffer<float> parts = problem.run_with([&](const GemmInt8Args& args) {
      run_split(kernel(), args, {0, args.N}, {0, kernel().num_tiles(args)}, random);
    });
    ASSERT_TRUE(same_bits(whole, parts));
    const Buffer<float> threads =
        problem.run_with([&](const GemmInt8Args& args) { run_threads(kernel(), args, args.N, random.integer(2, 8)); });
    ASSERT_TRUE(same_bits(whole, threads));
  }
}

}  // namespace
}  // namespace sparsecore::test
