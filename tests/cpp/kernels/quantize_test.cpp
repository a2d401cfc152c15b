// The oracle computes every integer anew; since each kernel must equal it, all kernels equal each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "harness.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr int16_t kUnwrittenInteger = 0x5a5a;

// Rows of x in a padded, poisoned buffer that ends with its last number.
struct Problem {
  Problem(const std::vector<std::vector<float>>& rows, int64_t padding, int64_t out_padding, Guard guard_side)
      : guard(guard_side), M(static_cast<int64_t>(rows.size())), K(rows.empty() ? 0 : int64_t(rows[0].size())) {
    args.M = M;
    args.K = K;
    args.ldx = K + padding;
    args.ld_out = K + out_padding;
    x = std::make_unique<Buffer<float>>(poisoned_input(M == 0 || K == 0 ? 0 : (M - 1) * args.ldx + K, guard));
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t k = 0; k < K; ++k) (*x)[m * args.ldx + k] = rows[size_t(m)][size_t(k)];
    }
    args.x = x->data();
  }

  struct Result {
    Buffer<int16_t> out;
    Buffer<float> scale;
  };

  template <class Function>
  Result run_with(Function function) const {
    Result result{Buffer<int16_t>(M * args.ld_out, guard), unwritten_output(M, guard)};
    std::fill(result.out.begin(), result.out.end(), kUnwrittenInteger);
    QuantizeArgs with_output = args;
    with_output.out = result.out.data();
    with_output.scale = result.scale.data();
    function(with_output);
    return result;
  }
  Result run(const Kernel<QuantizeArgs>& kernel) const {
    return run_with([&](const QuantizeArgs& with_output) { run_all(kernel, with_output, 1, guard); });
  }

  static double round_half_even(double a) {
    const double down = std::floor(a), rest = a - down;
    if (rest != 0.5) return rest < 0.5 ? down : down + 1.0;
    return std::fmod(down, 2.0) == 0.0 ? down : down + 1.0;
  }

  // The integer of one x, whose quotient is rounded to float32 first.
  static int16_t integer(float x, float scale, int32_t zero_point) {
    const float quotient = x / scale;
    if (std::isnan(quotient)) return 0;
    const double q = round_half_even(double(quotient)) + zero_point;
    return static_cast<int16_t>((q < -128.0 ? -128.0 : q > 127.0 ? 127.0 : q) - zero_point);
  }

  void check(const Result& result) const {
    for (int64_t m = 0; m < M; ++m) {
      const float scale = result.scale[m];
      check_scale(m, scale);
      for (int64_t k = 0; k < args.ld_out; ++k) {
        const int16_t got = result.out[m * args.ld_out + k];
        if (k >= K) {
          ASSERT_EQ(got, 0) << "padding of out, row " << m << ", column " << k;
          continue;
        }
        const float value = (*x)[m * args.ldx + k];
        ASSERT_EQ(got, integer(value, scale, args.is_dynamic ? 0 : args.zero_point))
            << "row " << m << ", column " << k << ", x " << value << ", scale " << scale;
      }
    }
  }

  void check_scale(int64_t m, float scale) const {
    ASSERT_FALSE(is_unwritten(scale)) << "row " << m;
    if (!args.is_dynamic) {
      ASSERT_EQ(scale, args.static_scale);
      return;
    }
    float largest = 0.0f;
    bool is_finite = true;
    for (int64_t k = 0; k < K; ++k) {
      const float value = (*x)[m * args.ldx + k];
      is_finite &= std::isfinite(value);
      largest = std::max(largest, std::fabs(value));
    }
    if (!is_finite) {
      ASSERT_TRUE(std::isnan(scale)) << "row " << m;
    } else if (largest == 0.0f) {
      ASSERT_EQ(scale, 1.0f) << "row " << m;
    } else if (largest / 127.0f >= kSmallestNormal) {
      ASSERT_EQ(scale, largest / 127.0f) << "row " << m;
    } else {  // a scale could only be subnormal: any that is usable, with results no further off than x itself
      ASSERT_GT(scale, 0.0f) << "row " << m;
      ASSERT_TRUE(std::isfinite(scale)) << "row " << m;
    }
  }

  Guard guard;
  int64_t M, K;
  std::unique_ptr<Buffer<float>> x;
  QuantizeArgs args;
};

using Rows = std::vector<std::vector<float>>;

template <class Value>
Rows make_rows(int64_t M, int64_t K, Value value) {
  Rows rows(static_cast<size_t>(M), std::vector<float>(static_cast<size_t>(K)));
  for (std::vector<float>& row : rows) {
    for (float& x : row) x = value();
  }
  return rows;
}

class QuantizeTest : public KernelTest<QuantizeArgs> {
 protected:
  // On both sides of a guard page, with and without padding.
  void check(const Rows& rows, bool is_dynamic = true, float scale = 1.0f, int32_t zero_point = 0) {
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      for (const int64_t padding : {0, 3}) {
        const Case trace(rows.size(), " rows", is_dynamic ? ", dynamic" : ", static", ", scale ", scale,
                         ", zero point ", zero_point, ", padding ", padding);
        Problem problem(rows, padding, padding == 0 ? (16 - int64_t(rows[0].size()) % 16) % 16 : 1, guard);
        problem.args.is_dynamic = is_dynamic;
        problem.args.static_scale = scale;
        problem.args.zero_point = zero_point;
        ASSERT_TRUE(kernel().supports(problem.args));
        problem.check(problem.run(kernel()));
      }
    }
  }
  void check_static(const Rows& rows, float scale, int32_t zero_point) { check(rows, false, scale, zero_point); }
};
SPARSECORE_TEST_EACH_KERNEL(QuantizeTest, quantize_kernels());

TEST_P(QuantizeTest, RowsOfEveryLength) {
  for (const int64_t K : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 300}) {
    for (const int64_t M : {1, 2, 5}) {
      Random random(static_cast<uint64_t>(K * 10 + M));
      const Case trace("K ", K, ", M ", M);
      const Rows rows = make_rows(M, K, [&] { return 10.0f * random.number(); });
      check(rows);
      check_static(rows, 0.04f, 0);
      check_static(rows, 0.04f, -37);
      if (HasFailure()) return;
    }
  }
}

TEST_P(QuantizeTest, HalvesGoToTheEvenNeighbour) {
  Rows rows(1);
  for (int half = -300; half <= 300; ++half) rows[0].push_back(float(half) * 0.5f);
  for (const int32_t zero_point : {0, 1, -1, 127, -128}) check_static(rows, 1.0f, zero_point);
  for (float& x : rows[0]) x *= 0.25f;
  check_static(rows, 0.25f, 0);
  check(Rows{{127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -126.5f, -127.0f}});  // dynamic scale 1
}

// Just below and above every half, where rounding the quotient or multiplying by 1 / scale would tip over.
TEST_P(QuantizeTest, NeighboursOfHalves) {
  for (const float scale : {1.0f, 0.1f, 1.0f / 3.0f, 0.0078431377f, 3e-20f, 7e20f}) {
    Rows rows(1);
    for (int step = -130; step <= 130; ++step) {
      const float half = (float(step) + 0.5f) * scale;
      for (const float x : {std::nextafterf(half, -kInf), half, std::nextafterf(half, kInf)}) rows[0].push_back(x);
    }
    check_static(rows, scale, 0);
    check_static(rows, scale, 5);
  }
}

TEST_P(QuantizeTest, ClampsToTheRangeOfInt8) {
  const Rows rows{{1e9f, -1e9f, 126.4f, 126.6f, 127.4f, 127.6f, 128.0f, -127.6f, -128.4f, -128.6f, kLargest, -kLargest,
                   3e9f, -3e9f, 1e19f, 32768.0f, -32769.0f, 65536.0f}};
  for (const int32_t zero_point : {0, 1, -1, 100, 127, -128}) {
    check_static(rows, 1.0f, zero_point);
    check_static(rows, 1e-30f, zero_point);
  }
}

TEST_P(QuantizeTest, StaticNanGivesZeroAndInfinitiesTheEnds) {
  for (const size_t length : {size_t(3), size_t(8), size_t(11)}) {
    for (const int32_t zero_point : {0, 17, -128}) {
      std::vector<float> row(length, 1.0f);
      row[0] = kNan;
      row[1] = kInf;
      row[length - 1] = -kInf;
      check_static({row}, 0.5f, zero_point);
      const Problem::Result result = [&] {
        Problem problem({row}, 0, 0, Guard::kAfter);
        problem.args.is_dynamic = false;
        problem.args.zero_point = zero_point;
        return problem.run(kernel());
      }();
      EXPECT_EQ(result.out[0], 0);
      EXPECT_EQ(result.out[1], 127 - zero_point);
      EXPECT_EQ(result.out[int64_t(length) - 1], -128 - zero_point);
    }
  }
}

// NaN or an infinity at every place of a row, with neighbours that are fine.
TEST_P(QuantizeTest, DynamicRowsThatAreNotFiniteGetScaleNan) {
  for (const int64_t K : {1, 5, 8, 9, 20}) {
    for (const float special : {kNan, -kNan, kInf, -kInf}) {
      for (int64_t at = 0; at < K; ++at) {
        Random random(static_cast<uint64_t>(K * 100 + at));
        Rows rows = make_rows(3, K, [&] { return random.number(); });
        rows[1][static_cast<size_t>(at)] = special;
        check(rows);
        if (HasFailure()) return;
      }
    }
  }
}

// The largest value at every place: found wherever it is.
TEST_P(QuantizeTest, DynamicScaleSeesEveryElement) {
  for (const int64_t K : {1, 7, 8, 9, 31, 40}) {
    for (int64_t at = 0; at < K; ++at) {
      for (const float peak : {5.0f, -5.0f}) {
        Random random(static_cast<uint64_t>(K * 100 + at));
        Rows rows = make_rows(2, K, [&] { return random.number(); });
        rows[0][static_cast<size_t>(at)] = peak;
        check(rows);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(QuantizeTest, ZeroRows) {
  check(make_rows(3, 20, [] { return 0.0f; }));
  check(make_rows(3, 20, [] { return -0.0f; }));
  check(Rows{{0.0f, -0.0f, 0.0f}, {1.0f, 2.0f, -3.0f}, {-0.0f, -0.0f, -0.0f}});
}

TEST_P(QuantizeTest, TinyAndHugeRows) {
  for (const float peak : {kSmallest, 100.0f * kSmallest, kSmallestNormal, 126.0f * kSmallestNormal,
                           127.0f * kSmallestNormal, 128.0f * kSmallestNormal, 1e-30f, kLargest}) {
    Random random(1);
    Rows rows = make_rows(2, 21, [&] { return peak * random.number(); });
    rows[0][4] = peak;
    rows[1][13] = -peak;
    check(rows);
    // Whatever the scale is: what comes back differs by half a step, or by no more than a subnormal scale forces.
    const Problem problem(rows, 0, 0, Guard::kAfter);
    const Problem::Result result = problem.run(kernel());
    for (int64_t m = 0; m < 2; ++m) {
      const double step = std::min(double(result.scale[m]), 2.0 * 127.0 * double(kSmallestNormal));
      const double allowed = std::max(0.5 * double(result.scale[m]) * (1.0 + 1e-4), step);
      for (int64_t k = 0; k < 21; ++k) {
        const double back = double(result.scale[m]) * result.out[m * 21 + k];
        EXPECT_LE(std::fabs(back - double(rows[size_t(m)][size_t(k)])), allowed) << "peak " << peak;
      }
    }
  }
}

TEST_P(QuantizeTest, AnyFloatAtAll) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Rows rows = make_rows(3, random.integer(1, 40), [&] { return random.any_float(); });
    check(rows);
    check_static(rows, std::max(std::fabs(random.number()), 1e-3f), static_cast<int32_t>(random.integer(-128, 127)));
    if (HasFailure()) return;
  }
}

TEST_P(QuantizeTest, AnySplitGivesTheSame) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Problem problem(make_rows(random.integer(1, 50), random.integer(1, 40), [&] { return random.number(); }), 2,
                          1, Guard::kAfter);
    const Problem::Result parts = problem.run_with(
        [&](const QuantizeArgs& args) { run_split(kernel(), args, {0, 1}, {0, kernel().num_tiles(args)}, random); });
    problem.check(parts);
    if (HasFailure()) return;
  }
}

TEST_P(QuantizeTest, NoRows) {
  const Problem problem({}, 0, 0, Guard::kAfter);
  EXPECT_EQ(kernel().num_tiles(problem.args), 0);
}

}  // namespace
}  // namespace sparsecore::test
