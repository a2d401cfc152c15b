// The kernel that quantizes activations, on emulated threads: the bytes and scales that QuantizeArgs in ops.h promises.
#include "cuda/quantize_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda/emulation.h"
#include "numbers.h"
#include "random.h"

namespace sparsecore::cuda {
namespace {

using test::Buffer;
using test::Guard;
using test::Numbers;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Case {
  Case(test::Random& random, Dtype dtype, int64_t m, int64_t k)
      : M(m),
        K(k),
        x(dtype, m * k, Guard::kAfter),
        inverse(k, Guard::kAfter),
        out(m * k, Guard::kAfter),
        scales(m, Guard::kAfter) {
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, float(test::round_to(dtype, 3.0 * random.number())));
    for (float& number : inverse) number = random.pick({0.25f, 1.0f, 4.0f});
    for (float& scale : scales) scale = kNaN;
    args = {M,    K,    dtype, x.data(),   random.chance(0.5) ? inverse.data() : nullptr,
            true, 1.0f, 0,     out.data(), scales.data()};
  }

  // x[m, k] times its channel's number, exact.
  float number(int64_t m, int64_t k) const {
    return x[m * K + k] * (args.channel_inverse == nullptr ? 1.0f : inverse[k]);
  }
  float maximum(int64_t m) const {
    float largest = 0.0f;
    for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::fabs(number(m, k)));
    return largest;
  }

  int64_t M, K;
  Numbers x;
  Buffer<float> inverse;
  Buffer<int8_t> out;
  Buffer<float> scales;
  QuantizeRows args;
};

void run(Case& c, uint32_t seed) {
  constexpr int kWarps = 2;
  const auto kernel = [&] {
    switch (c.args.dtype) {
      case Dtype::kFloat16:
        return quantize_rows_kernel<Half>(c.args);
      case Dtype::kBFloat16:
        return quantize_rows_kernel<Brain>(c.args);
      default:
        return quantize_rows_kernel<Float32>(c.args);
    }
  };
  run_grid({c.M, 1}, kWarps * kWarp, kWarps * int64_t(sizeof(float)), seed, kernel);
}

int expected_byte(float number, float inverse, int32_t zero_point) {
  return static_cast<int>(std::clamp(std::nearbyint(double(number * inverse)) + zero_point, -128.0, 127.0));
}

TEST(CudaQuantizeRows, EachRowHasItsScale) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c(random, random.pick(test::kAllDtypes), random.pick<int64_t>({1, 3}),
           random.pick<int64_t>({0, 1, 31, 64, 65, 200}));
    run(c, seed);
    for (int64_t m = 0; m < c.M; ++m) {
      const float largest = c.maximum(m), scale = largest == 0.0f ? 1.0f : largest / 127.0f;
      ASSERT_EQ(c.scales[m], scale) << m;
      for (int64_t k = 0; k < c.K; ++k) {
        ASSERT_EQ(c.out[m * c.K + k], expected_byte(c.number(m, k), 1.0f / scale, 0)) << m << ", " << k;
      }
    }
  }
}

TEST(CudaQuantizeRows, OneScaleForAll) {
  bool is_clamped = false;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c(random, random.pick(test::kAllDtypes), 3, random.pick<int64_t>({1, 65, 200}));
    c.args.is_dynamic = false;
    c.args.scale = random.pick({0.01f, 0.03f, 0.25f});
    c.args.zero_point = static_cast<int32_t>(random.integer(-128, 127));
    c.args.scales = nullptr;
    c.x.set(0, kNaN);
    run(c, seed);
    ASSERT_EQ(c.out[0], c.args.zero_point);
    for (int64_t at = 1; at < c.M * c.K; ++at) {
      const int byte = expected_byte(c.number(at / c.K, at % c.K), 1.0f / c.args.scale, c.args.zero_point);
      ASSERT_EQ(c.out[at], byte) << at;
      is_clamped |= byte == -128 || byte == 127;
    }
  }
  EXPECT_TRUE(is_clamped);
}

TEST(CudaQuantizeRows, WhatIsNotFiniteMakesTheScaleOfItsRowNaN) {
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const int64_t at : {0, 33, 99}) {
      test::Random random(static_cast<uint32_t>(at));
      Case c(random, Dtype::kFloat32, 2, 100);
      c.x.set(at, bad);
      run(c, 1);
      EXPECT_TRUE(std::isnan(c.scales[0]));
      EXPECT_EQ(c.scales[1], c.maximum(1) / 127.0f);
    }
  }
}

TEST(CudaQuantizeRows, TinyRowsCountAsZero) {
  test::Random random(0);
  Case c(random, Dtype::kFloat32, 1, 40);
  for (int64_t i = 0; i < c.x.size(); ++i) c.x.set(i, 1e-37f);
  c.args.channel_inverse = nullptr;
  run(c, 1);
  EXPECT_EQ(c.scales[0], 1.0f);
  for (const int8_t byte : c.out) EXPECT_EQ(byte, 0);
}

}  // namespace
}  // namespace sparsecore::cuda
