// Numbers in the dtypes that activations are stored as, converted by plain arithmetic that shares nothing with the
// kernels, and whether an output of such a dtype is what it must be.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "guarded.h"
#include "oracle.h"
#include "sparsecore/views.h"

namespace sparsecore::test {

inline constexpr Dtype kAllDtypes[] = {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

inline const char* dtype_name(Dtype dtype) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "float16"};
  return kNames[static_cast<size_t>(dtype)];
}

// IEEE 754 interchange formats; bfloat16 has the exponents of float32.
struct FloatFormat {
  int fraction_bits, exponent_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int least_exponent() const { return 1 - bias(); }
  double largest() const { return std::ldexp(2.0 - std::ldexp(1.0, -fraction_bits), bias()); }
};
inline FloatFormat format_of(Dtype dtype) {
  constexpr FloatFormat kFormats[] = {{23, 8}, {7, 8}, {10, 5}};
  return kFormats[static_cast<size_t>(dtype)];
}

// To nearest, half to even; infinite past the largest number.
inline double round_to(Dtype dtype, double value) {
  if (!std::isfinite(value) || value == 0.0) return value;
  const FloatFormat format = format_of(dtype);
  const double step = std::ldexp(1.0, std::max(std::ilogb(value), format.least_exponent()) - format.fraction_bits);
  const double rounded = std::nearbyint(value / step) * step;
  return std::fabs(rounded) <= format.largest() ? rounded
                                                : std::copysign(std::numeric_limits<double>::infinity(), value);
}

// The number that 16 bits stand for.
inline float decode(Dtype dtype, uint16_t bits) {
  const FloatFormat format = format_of(dtype);
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = (bits & 0x7fff) >> format.fraction_bits;
  double magnitude = std::ldexp(fraction, format.least_exponent() - format.fraction_bits);
  if (exponent == (1 << format.exponent_bits) - 1) {
    magnitude = fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
  } else if (exponent > 0) {
    magnitude = std::ldexp(fraction + (1 << format.fraction_bits), exponent - format.bias() - format.fraction_bits);
  }
  return static_cast<float>((bits & 0x8000) != 0 ? -magnitude : magnitude);
}

inline uint16_t encode(Dtype dtype, double value) {
  const FloatFormat format = format_of(dtype);
  const int infinity = ((1 << format.exponent_bits) - 1) << format.fraction_bits;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(round_to(dtype, value));
  int bits = 0;
  if (std::isnan(value)) {
    bits = infinity | 1 << (format.fraction_bits - 1);
  } else if (std::isinf(magnitude)) {
    bits = infinity;
  } else if (magnitude > 0.0) {
    // The leading bit of the fraction adds one to the exponent; a subnormal has none.
    const int exponent = std::max(std::ilogb(magnitude), format.least_exponent());
    const int fraction = static_cast<int>(std::ldexp(magnitude, format.fraction_bits - exponent));
    bits = ((exponent + format.bias() - 1) << format.fraction_bits) + fraction;
  }
  return static_cast<uint16_t>(bits | sign);
}

// A guarded array of a dtype that is known when the test runs.
class Numbers {
 public:
  Numbers(Dtype dtype, int64_t size, Guard guard) : dtype_(dtype), bytes_(size * bytes_of(dtype), guard) {}

  // `content` must be numbers of the dtype.
  Numbers(Dtype dtype, const std::vector<float>& content, Guard guard)
      : Numbers(dtype, static_cast<int64_t>(content.size()), guard) {
    for (int64_t i = 0; i < size(); ++i) set(i, content[static_cast<size_t>(i)]);
  }

  // A NaN that no arithmetic makes, for elements that nobody wrote.
  static Numbers unwritten(Dtype dtype, int64_t size, Guard guard) {
    Numbers y(dtype, size, guard);
    for (int64_t i = 0; i < size; ++i) y.put(i, dtype == Dtype::kFloat32 ? kUnwrittenBits : kUnwrittenBits >> 16);
    return y;
  }

  Dtype dtype() const { return dtype_; }
  int64_t size() const { return bytes_.size() / bytes_of(dtype_); }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }

  float operator[](int64_t i) const {
    return dtype_ == Dtype::kFloat32 ? std::bit_cast<float>(get<uint32_t>(i)) : decode(dtype_, get<uint16_t>(i));
  }
  void set(int64_t i, float value) {
    put(i, dtype_ == Dtype::kFloat32 ? std::bit_cast<uint32_t>(value) : encode(dtype_, double(value)));
  }
  bool is_unwritten(int64_t i) const {
    return dtype_ == Dtype::kFloat32 ? get<uint32_t>(i) == kUnwrittenBits : get<uint16_t>(i) == kUnwrittenBits >> 16;
  }

  friend bool same_bits(const Numbers& a, const Numbers& b) {
    return a.dtype_ == b.dtype_ && a.size() == b.size() &&
           std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes_.size())) == 0;
  }

 private:
  static int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

  template <class Bits>
  Bits get(int64_t i) const {
    Bits bits;
    std::memcpy(&bits, bytes_.data() + i * int64_t(sizeof(Bits)), sizeof(Bits));
    return bits;
  }
  void put(int64_t i, uint32_t bits) {
    const int64_t bytes = bytes_of(dtype_);
    const auto narrow = static_cast<uint16_t>(bits);
    std::memcpy(bytes_.data() + i * bytes, bytes == 4 ? static_cast<const void*>(&bits) : &narrow,
                static_cast<size_t>(bytes));
  }

  Dtype dtype_;
  Buffer<uint8_t> bytes_;
};

// Rounding is monotone, so an output of 16 bits lies between the roundings of the ends of the float32 bound.
inline bool is_close(const Numbers& y, int64_t at, const Expected& expected) {
  if (y.is_unwritten(at)) return false;
  const float got = y[at];
  if (y.dtype() == Dtype::kFloat32 || std::isnan(expected.value)) return is_close(got, expected);
  return round_to(y.dtype(), expected.value - expected.bound) <= double(got) &&
         double(got) <= round_to(y.dtype(), expected.value + expected.bound);
}

inline std::string describe(const Numbers& y, int64_t at, const Expected& expected) {
  std::ostringstream text;
  text << dtype_name(y.dtype()) << ": "
       << describe(y.is_unwritten(at) ? std::bit_cast<float>(kUnwrittenBits) : y[at], expected);
  return text.str();
}

}  // namespace sparsecore::test
