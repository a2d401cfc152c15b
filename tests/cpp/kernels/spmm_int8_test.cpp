#include <gtest/gtest.h>

#include <vector>

#include "int8_problem.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

class Problem {
 public:
  explicit Problem(const Int8Shape& shape) : Problem(shape, Random(shape.seed)) {}

  const SpmmInt8Args& args() const { return args_; }

  Buffer<float> run(const Kernel<SpmmInt8Args>& kernel) const {
    return run_with([&](const SpmmInt8Args& args) { run_all(kernel, args, rows_.shape.N, rows_.shape.guard); });
  }
  template <class Function>
  Buffer<float> run_with(Function function) const {
    Buffer<float> y = rows_.output();
    SpmmInt8Args args = args_;
    args.y = y.data();
    function(args);
    return y;
  }

  void check(const Buffer<float>& y) const {
    for (int64_t n = 0; n < rows_.shape.N; ++n) {
      for (int64_t m = 0; m < args_.M; ++m) {
        int64_t acc = 0;
        for (int64_t i = weight_.row_ptr[n]; i < weight_.row_ptr[n + 1]; ++i) {
          acc += int64_t(rows_.x[m * rows_.ldx + weight_.col_idx[i]]) * weight_.values[i];
        }
        rows_.check_element(y, m, n, acc);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
    rows_.check_padding(y);
  }

 private:
  Problem(const Int8Shape& shape, Random random)
      : rows_(shape, random), weight_(random_csr<int8_t>(random, shape.N, shape.K, shape.fill), shape.guard) {
    rows_.set_weights(weight_.values);
    args_.weight = weight_.view();
    args_.weight_scale = rows_.weight_scale.data();
    args_.x = rows_.x.data();
    args_.x_scale = rows_.x_scale.data();
    args_.M = shape.M;
    args_.ldx = rows_.ldx;
    args_.ldy = rows_.ldy;
    args_.epilogue = rows_.epilogue();
  }

  Int8Problem rows_;
  GuardedCsr<int8_t> weight_;
  SpmmInt8Args args_;
};

class SpmmInt8Test : public KernelTest<SpmmInt8Args> {
 protected:
  void check(const Int8Shape& shape) {
    const Case trace(shape);
    const Problem problem(shape);
    ASSERT_TRUE(kernel().supports(problem.args()));
    problem.check(problem.run(kernel()));
  }
};
SPARSECORE_TEST_EACH_KERNEL(SpmmInt8Test, spmm_int8_kernels());

TEST_P(SpmmInt8Test, AroundTheTile) {
  uint64_t seed = 1000;
  for (const int64_t M : kInt8Rows) {
    for (const int64_t N : kInt8Features) {
      for (const int64_t K : kInt8Reduced) {
        for (const Fill fill : kAllFills) {
          Random random(++seed);
          Int8Shape shape{.M = M, .N = N, .K = K, .fill = fill};
          shape.activation = random.pick(kAllActivations);
          shape.has_bias = random.chance(0.5);
          shape.ldx_step = random.pick<int64_t>({1, 16});
          shape.padding = random.chance(0.5) ? 0 : random.integer(1, 9);
          shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
          shape.seed = seed;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Entries are taken in pairs and in fours: rows of every length up to 9, so that each remainder occurs.
TEST_P(SpmmInt8Test, RowsOfEveryLength) {
  for (int64_t nnz = 0; nnz <= 9; ++nnz) {
    for (const int64_t M : {1, 2, 17, 40}) {
      for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
        check({.M = M, .N = 3, .K = nnz, .ldx_step = 1, .guard = guard, .seed = static_cast<uint64_t>(nnz)});
        if (HasFailure()) return;
      }
    }
  }
}

// A weight so wide that a tile of full width would not fit in cache.
TEST_P(SpmmInt8Test, NarrowTilesOfWideWeights) {
  for (const int64_t K : {5000, 9000, 30000}) {
    for (const int64_t M : {1, 15, 16, 17, 70}) {
      check({.M = M, .N = 9, .K = K, .fill = Fill::kTenth, .seed = static_cast<uint64_t>(K)});
      if (HasFailure()) return;
    }
  }
}

TEST_P(SpmmInt8Test, EveryActivationWithAndWithoutBias) {
  uint64_t seed = 10000;
  for (const Activation activation : kAllActivations) {
    for (const bool has_bias : {false, true}) {
      for (const int64_t M : {1, 4, 18, 70}) {
        for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
          Int8Shape shape{.M = M, .N = 17, .K = 40, .fill = Fill::kRagged, .activation = activation};
          shape.has_bias = has_bias;
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
TEST_P(SpmmInt8Test, LargestSumsAreExact) {
  for (const Integers integers : {Integers::kLargest, Integers::kSmallest}) {
    for (const int64_t M : {1, 2, 17}) {
      for (const int64_t K : {kMaxInt8K - 1, kMaxInt8K}) {
        check({.M = M, .N = 2, .K = K, .fill = Fill::kFull, .integers = integers, .seed = 1});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(SpmmInt8Test, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 20000; seed < 20200; ++seed) {
    Random random(seed);
    Int8Shape shape{.M = random.integer(1, 200), .N = random.integer(1, 40), .K = random.pick<int64_t>({1, 30, 500})};
    shape.fill = random.pick(kAllFills);
    shape.activation = random.pick(kAllActivations);
    shape.has_bias = random.chance(0.5);
    shape.padding = random.integer(0, 3);
    shape.seed = seed;
    const Case trace(shape);
    const Problem problem(shape);
    const Buffer<float> whole = problem.run(kernel());
    const Buffer<float> parts = problem.run_with([&](const SpmmInt8Args& args) {
      run_split(kernel(), args, {0, shape.N}, {0, kernel().num_tiles(args)}, random);
    });
    ASSERT_TRUE(same_bits(whole, parts));
    const Buffer<float> threads =
        problem.run_with([&](const SpmmInt8Args& args) { run_threads(kernel(), args, shape.N, random.integer(2, 8)); });
    ASSERT_TRUE(same_bits(whole, threads));
  }
}

TEST_P(SpmmInt8Test, NothingToComputeMeansNoTiles) {
  EXPECT_EQ(kernel().num_tiles(Problem({.M = 0, .N = 3, .K = 3}).args()), 0);
}

}  // namespace
}  // namespace sparsecore::test
