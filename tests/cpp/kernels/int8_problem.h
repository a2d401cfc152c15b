// Shared by the two int8 operations: quantized rows of x and the exact float32 result.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>

#include "csr.h"
#include "harness.h"
#include "oracle.h"

namespace sparsecore::test {

// How the integers are chosen: over the whole range that quantizing can give; the largest products of one sign, so
// that sums come as close to 2^31 as they can; or its negative.
enum class Integers { kAny, kLargest, kSmallest };

struct Int8Shape {
  int64_t M = 1, N = 1, K = 1;
  Fill fill = Fill::kFull;
  Activation activation = Activation::kNone;
  bool has_bias = false;
  bool has_nan_scale = false;  // of every fifth row of x: a row that held a NaN
  int64_t ldx_step = 16;       // the bindings round K up to a multiple of 16
  int64_t padding = 0;         // of ldy
  Integers integers = Integers::kAny;
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;
};

inline std::ostream& operator<<(std::ostream& out, const Int8Shape& shape) {
  return out << "seed " << shape.seed << ": M " << shape.M << ", N " << shape.N << ", K " << shape.K << ", fill "
             << shape.fill << ", " << activation_name(shape.activation) << (shape.has_bias ? ", bias" : "")
             << (shape.has_nan_scale ? ", NaN scales" : "") << ", ldx step " << shape.ldx_step << ", padding "
             << shape.padding << ", integers " << int(shape.integers)
             << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

class Int8Problem {
 public:
  Int8Problem(const Int8Shape& shape_, Random& random)
      : shape(shape_),
        ldx((shape.K + shape.ldx_step - 1) / shape.ldx_step * shape.ldx_step),
        ldy(shape.N + shape.padding),
        x(shape.M * ldx, shape.guard),
        x_scale(shape.M, shape.guard),
        weight_scale(shape.N, shape.guard),
        bias(shape.has_bias ? shape.N : 0, shape.guard) {
    for (int64_t m = 0; m < shape.M; ++m) {
      for (int64_t k = 0; k < ldx; ++k) x[m * ldx + k] = k < shape.K ? activation_value(random) : int16_t(0);
      const bool is_nan = shape.has_nan_scale && m % 5 == 2;
      x_scale[m] = is_nan ? std::numeric_limits<float>::quiet_NaN() : 0.01f + 0.005f * random.number();
    }
    for (float& scale : weight_scale) scale = 0.01f + 0.005f * random.number();
    for (float& value : bias) value = random.number();
  }

  Epilogue epilogue() const { return {shape.has_bias ? bias.data() : nullptr, shape.activation}; }

  template <class Weights>
  void set_weights(Weights& weights) const {
    if (shape.integers == Integers::kAny) return;
    for (int8_t& weight : weights) weight = -128;
  }

  Buffer<float> output() const {
    return unwritten_output(shape.M == 0 || shape.N == 0 ? 0 : (shape.M - 1) * ldy + shape.N, shape.guard);
  }

  // The whole chain of roundings that ops.h states, around an exact sum.
  void check_element(const Buffer<float>& y, int64_t m, int64_t n, int64_t acc) const {
    ASSERT_LE(std::abs(acc), int64_t(std::numeric_limits<int32_t>::max()));
    const float scaled = float(int32_t(acc)) * (x_scale[m] * weight_scale[n]);
    const float before = scaled + (shape.has_bias ? bias[n] : 0.0f);
    const Expected expected = expect_activated(double(before), shape.activation);
    const float got = y[m * ldy + n];
    ASSERT_TRUE(is_close(got, expected)) << describe(got, expected) << " in row " << m << ", column " << n << ", sum "
                                         << acc;
  }

  void check_padding(const Buffer<float>& y) const {
    for (int64_t at = 0; at < y.size(); ++at) {
      ASSERT_TRUE(at % ldy < shape.N || is_unwritten(y[at])) << "padding of y written at " << at;
    }
  }

  Int8Shape shape;
  int64_t ldx, ldy;
  Buffer<int16_t> x;
  Buffer<float> x_scale, weight_scale, bias;

 private:
  int16_t activation_value(Random& random) const {
    if (shape.integers == Integers::kAny) return static_cast<int16_t>(random.integer(-255, 255));
    return shape.integers == Integers::kLargest ? -255 : 255;  // times -128
  }
};

// Around blocks of 3 and 4, vectors of 8, 16 and 32, and tiles of 64.
inline constexpr int64_t kInt8Rows[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 129};
inline constexpr int64_t kInt8Features[] = {1, 2, 3, 4, 7, 8, 9, 33};
inline constexpr int64_t kInt8Reduced[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 300};

}  // namespace sparsecore::test
