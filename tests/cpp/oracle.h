// What results must be: slow references in float64 and int64, and how far a float32 kernel may be from them.
#pragma once

#include <cmath>
#include <cstdint>
#include <iomanip>
#include <numbers>
#include <sstream>
#include <string>

#include "guarded.h"
#include "sparsecore/kernel.h"

namespace sparsecore::test {

inline constexpr Activation kAllActivations[] = {Activation::kNone,    Activation::kRelu,       Activation::kRelu6,
                                                 Activation::kGelu,    Activation::kSilu,       Activation::kHardswish,
                                                 Activation::kSigmoid, Activation::kHardsigmoid};

inline const char* activation_name(Activation activation) {
  constexpr const char* kNames[] = {"none", "relu", "relu6", "gelu", "silu", "hardswish", "sigmoid", "hardsigmoid"};
  return kNames[static_cast<size_t>(activation)];
}

// The formulas of kernel.h; comparisons are written so that NaN stays.
inline double activate(Activation activation, double y) {
  const auto relu6 = [](double a) { return a < 0.0 ? 0.0 : a > 6.0 ? 6.0 : a; };
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y < 0.0 ? 0.0 : y;
    case Activation::kRelu6:
      return relu6(y);
    case Activation::kGelu:
      return y / 2.0 * (1.0 + std::erf(y / std::numbers::sqrt2));
    case Activation::kSilu:
      return y / (1.0 + std::exp(-y));
    case Activation::kHardswish:
      return y * relu6(y + 3.0) / 6.0;
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-y));
    case Activation::kHardsigmoid:
      return relu6(y + 3.0) / 6.0;
  }
  return y;
}

// Roundings in the subnormal range are absolute: half of 2^-149 each, at most four in an activation.
inline constexpr double kUnderflow = 0x1p-148;

// Error that kernel.h allows an activation to add, for |y| and |activation(y)| up to these.
inline double activation_error(Activation activation, double y, double result) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kRelu:
    case Activation::kRelu6:
      return 0.0;  // they only choose between numbers
    case Activation::kGelu:
    case Activation::kSilu:
      return std::isfinite(y) ? 4e-7 * y + kUnderflow : 0.0;
    case Activation::kHardswish:
      return std::isfinite(y) ? 0x1p-22 * y + kUnderflow : 0.0;
    case Activation::kSigmoid:
      return 4e-7 * result + 2e-38;
    case Activation::kHardsigmoid:
      return 0x1p-22 * result + kUnderflow;
  }
  return 0.0;
}

// Largest slope: gelu at sqrt(2), silu at 2.3994, hardswish at 3, sigmoid at 0 (rounded up).
inline double lipschitz(Activation activation) {
  constexpr double kSlopes[] = {1.0, 1.0, 1.0, 1.1290, 1.0999, 1.5, 0.25, 0.1667};
  return kSlopes[static_cast<size_t>(activation)];
}

// Higham, Accuracy and Stability of Numerical Algorithms, 2002, lemma 3.1: n roundings of float32.
inline double gamma(int64_t n) {
  const double nu = double(n) * 0x1p-24;
  return nu / (1.0 - nu);
}

struct Expected {
  double value = 0.0;
  double bound = 0.0;
};

// activation(y) of a float32 y that is known exactly.
inline Expected expect_activated(double y, Activation activation) {
  const double value = activate(activation, y);
  return {value, activation_error(activation, std::fabs(y), std::fabs(value))};
}

// A sum of products over the stored entries, and the sum of their absolute values. Products of two float32 are
// exact in float64, and its own rounding is 2^-29 of float32's.
struct Sum {
  double value = 0.0;
  double magnitude = 0.0;
  int64_t terms = 0;

  void add(double weight, double x) {
    value += weight * x;
    magnitude += std::fabs(weight * x);
    ++terms;
  }
};

// activation(sum + bias), where sum was accumulated in float32 in any order.
inline Expected expect_sum(const Sum& sum, float bias, Activation activation) {
  const double y = sum.value + double(bias);
  const double value = activate(activation, y);
  const double magnitude = sum.magnitude + std::fabs(double(bias));
  if (!std::isfinite(magnitude)) return expect_activated(y, activation);  // a sum of infinities and NaN is exact
  const double error = gamma(sum.terms + 2) * magnitude + double(sum.terms + 2) * 0x1p-149;
  const double moved = lipschitz(activation) * error;
  return {value, moved + activation_error(activation, std::fabs(y) + error, std::fabs(value) + moved)};
}

inline bool is_close(float got, const Expected& expected) {
  if (is_unwritten(got)) return false;
  if (std::isnan(expected.value)) return std::isnan(got);
  if (double(got) == expected.value) return true;  // also infinities
  return std::fabs(double(got) - expected.value) <= expected.bound;
}

inline std::string describe(float got, const Expected& expected) {
  std::ostringstream text;
  text << std::setprecision(9) << "expected " << expected.value << " +- " << expected.bound << ", ";
  if (is_unwritten(got)) {
    text << "never written";
  } else {
    text << "got " << got;
  }
  return text.str();
}

}  // namespace sparsecore::test
