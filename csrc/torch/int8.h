// What int8 operations ask of their activations and outputs, on any device.
#pragma once

#include <limits>
#include <optional>

#include "torch/checks.h"

namespace sparsecore::torch_binding {

inline bool is_float(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

inline Dtype dtype_of(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 ? Dtype::kBFloat16
         : dtype == ScalarType::Half   ? Dtype::kFloat16
                                       : Dtype::kFloat32;
}

inline void check_int8_input(const Tensor& x) {
  check(is_float(x.scalar_type()) || x.scalar_type() == ScalarType::Char,
        "expected float32, float16, bfloat16 or int8 x; convert it with .float()");
}

// Positive, and finite like its inverse, in float32.
inline bool is_scale(double scale) {
  return scale >= double(std::numeric_limits<float>::min()) && scale <= 1.0 / double(std::numeric_limits<float>::min());
}

inline bool is_int8_number(int64_t number) { return number >= -128 && number <= 127; }

// How activations become bytes; int8 ones are bytes already.
struct __attribute__((visibility("hidden"))) Quantization {
  const std::optional<double>& scale;  // none: dynamic
  int64_t zero_point;
  const std::optional<Tensor>& channel_inverse;

  void check_for(const Tensor& x) const {
    const bool is_int8 = x.scalar_type() == ScalarType::Char;
    check(!scale || is_scale(*scale), "expected a positive finite x_scale, got ", scale.value_or(0.0));
    check(is_int8_number(zero_point), "expected x_zero_point in [-128, 127], got ", zero_point);
    check(scale || zero_point == 0, "expected x_zero_point 0 without an x_scale, got ", zero_point);
    check(!is_int8 || scale, "expected an x_scale with int8 x");
    check(!is_int8 || !channel_inverse, "expected float x with x_channel_inverse");
  }
};

struct __attribute__((visibility("hidden"))) Int8OutputSettings {
  const std::optional<double>& scale;  // of int8 outputs; none: floating point
  int64_t zero_point;

  bool is_int8() const { return scale.has_value(); }
  ScalarType dtype(ScalarType x) const { return is_int8() ? ScalarType::Char : is_float(x) ? x : ScalarType::Float; }

  float inverse_scale() const {
    check(is_scale(*scale), "expected a positive finite y_scale, got ", *scale);
    check(is_int8_number(zero_point), "expected y_zero_point in [-128, 127], got ", zero_point);
    return 1.0f / static_cast<float>(*scale);
  }
};

}  // namespace sparsecore::torch_binding
