// The dense int8 kernel on emulated threads, against int64.
#include "cuda/linear_int8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/emulation.h"
#include "numbers.h"
#include "oracle.h"
#include "random.h"

namespace sparsecore::cuda {
namespace {

using test::Buffer;
using test::Guard;
using test::Numbers;

struct Case {
  Case(test::Random& random, Dtype dtype, int64_t n, int64_t k, int64_t m)
      : N(n),
        K(k),
        M(m),
        alignment(random.pick<int64_t>({1, 16})),
        weight(n * k, Guard::kAfter, alignment),
        x(m * k, Guard::kAfter, alignment),
        scale(n, Guard::kAfter),
        x_scale(m, Guard::kAfter),
        weight_sum(n, Guard::kAfter),
        bias(n, Guard::kAfter),
        residual(dtype, m * n, Guard::kAfter),
        y(Numbers::unwritten(dtype, m * n, Guard::kAfter)) {
    for (int8_t& number : weight) number = static_cast<int8_t>(random.integer(-128, 127));
    for (int8_t& number : x) number = static_cast<int8_t>(random.integer(-128, 127));
    for (float& number : scale) number = random.pick({0.25f, 0.5f, 1.0f, 2.0f});
    for (float& number : x_scale) number = random.pick({0.25f, 0.5f, 1.0f, 2.0f});
    for (int64_t row = 0; row < n; ++row) {
      weight_sum[row] = 0;
      for (int64_t k_at = 0; k_at < k; ++k_at) weight_sum[row] += weight[row * k + k_at];
    }
    if (random.chance(0.5)) zero_point = static_cast<int32_t>(random.integer(-128, 127));
    has_one_scale = random.chance(0.3);
    for (float& number : bias) number = random.number();
    for (int64_t i = 0; i < residual.size(); ++i) residual.set(i, float(test::round_to(dtype, random.number())));
  }

  int64_t sum_of(int64_t m, int64_t n) const {
    int64_t sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += int64_t(weight[n * K + k]) * (x[m * K + k] - zero_point);
    return sum;
  }
  float scale_of(int64_t m) const { return x_scale[has_one_scale ? 0 : m]; }
  Int8Activations input() const {
    return {M, x.data(), has_one_scale ? nullptr : x_scale.data(), x_scale[0], zero_point, weight_sum.data()};
  }

  int64_t N, K, M, alignment;
  int32_t zero_point = 0;
  bool has_one_scale = false;
  Buffer<int8_t> weight, x;
  Buffer<float> scale, x_scale;
  Buffer<int32_t> weight_sum;
  Buffer<float> bias;
  Numbers residual, y;
};

template <class X, int kTokenTiles>
void run(const Case& c, const Int8Output& out, uint32_t seed) {
  constexpr int kWarps = 2, kTokens = kInt8Tokens * kTokenTiles;
  const Int8Arrays weight{c.N, c.K, c.weight.data(), c.scale.data()};
  const auto is_aligned_at = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const bool is_aligned = c.K % 16 == 0 && is_aligned_at(c.x.data()) && is_aligned_at(c.weight.data());
  run_grid({(c.N + kInt8Rows - 1) / kInt8Rows, (c.M + kTokens - 1) / kTokens}, kWarps * kWarp,
           kWarps * kInt8Rows * kTokens * 4, seed,
           [&] { linear_int8_rows<X, kTokenTiles>(weight, c.input(), is_aligned, out); });
}

template <class X>
void run_any(const Case& c, const Int8Output& out, uint32_t seed) {
  if (c.M <= 8) return run<X, 1>(c, out, seed);
  if (c.M <= 16) return run<X, 2>(c, out, seed);
  run<X, 4>(c, out, seed);
}

Case random_case(test::Random& random, Dtype dtype) {
  return Case(random, dtype, random.pick<int64_t>({1, 8, 15, 16, 17, 40}),
              random.pick<int64_t>({0, 1, 15, 16, 63, 64, 65, 256, 300}),
              random.pick<int64_t>({1, 7, 8, 9, 16, 20, 33}));
}

// Scales are powers of two and sums below 2^24.
TEST(CudaLinearInt8, EqualsInt64) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, Dtype::kFloat32);
    run_any<Float32>(c, {{c.y.data(), nullptr, nullptr, Activation::kNone}}, seed);
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.N; ++n) {
        const double expected = double(c.sum_of(m, n)) * double(c.scale[n]) * double(c.scale_of(m));
        ASSERT_EQ(double(c.y[m * c.N + n]), expected) << m << ", " << n;
      }
    }
  }
}

TEST(CudaLinearInt8, EpiloguesEqualFloat64) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, random.chance(0.5) ? Dtype::kFloat16 : Dtype::kBFloat16);
    for (float& number : c.x_scale) number /= 4096.0f;  // so that sums are about 1
    const Activation activation = random.pick(test::kAllActivations);
    const Int8Output out{{c.y.data(), c.residual.data(), c.bias.data(), activation}};
    if (c.y.dtype() == Dtype::kFloat16) {
      run_any<Half>(c, out, seed);
    } else {
      run_any<Brain>(c, out, seed);
    }
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.N; ++n) {
        const int64_t at = m * c.N + n;
        test::Sum sum;
        sum.add(double(c.sum_of(m, n)) * double(c.scale[n]), double(c.scale_of(m)));
        sum.add(1.0, double(c.residual[at]));
        sum.terms += 3;
        const test::Expected expected = test::expect_sum(sum, c.bias[n], activation);
        ASSERT_TRUE(test::is_close(c.y, at, expected)) << test::describe(c.y, at, expected) << " at " << m << ", " << n;
      }
    }
  }
}

// Without activation and with scales that are powers of two, y before rounding is a number of float32.
TEST(CudaLinearInt8, Int8OutputsAreRoundedToEvenAndClamped) {
  bool is_clamped = false, is_halfway = false;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, Dtype::kFloat32);
    Buffer<int8_t> y(c.M * c.N, Guard::kAfter);
    Int8Output out{{y.data(), nullptr, nullptr, Activation::kNone}};
    out.is_int8 = true;
    out.inverse_scale = 1.0f / float(random.pick<int64_t>({8, 1024, 65536}));
    out.zero_point = static_cast<int32_t>(random.integer(-128, 127));
    run_any<Integer8>(c, out, seed);
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.N; ++n) {
        const double value =
            double(c.sum_of(m, n)) * double(c.scale[n]) * double(c.scale_of(m)) * double(out.inverse_scale);
        const double whole = std::nearbyint(value) + out.zero_point;
        ASSERT_EQ(double(y[m * c.N + n]), std::clamp(whole, -128.0, 127.0)) << m << ", " << n;
        is_clamped |= whole < -128.0 || whole > 127.0;
        is_halfway |= std::fabs(value - std::floor(value) - 0.5) == 0.0;
      }
    }
  }
  EXPECT_TRUE(is_clamped && is_halfway);
}

}  // namespace
}  // namespace sparsecore::cuda
