// An int8 product of any format: activations as an image with its padding, and the exact result.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <utility>
#include <vector>

#include "harness.h"
#include "numbers.h"
#include "oracle.h"
#include "packed_int8.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {

// How numbers are chosen: all that there are; the largest products of one sign, so that sums come as close to 2^31 as
// they can, and its negative; small ones with scales that leave halves, which rounding to int8 must decide.
enum class Integers { kAny, kLargest, kSmallest, kHalves };

// A convolution; a linear layer has 1x1 filters and images of one pixel.
struct Int8Shape {
  int64_t N = 1, channels = 1;
  int64_t kernel_h = 1, kernel_w = 1, stride = 1, dilation = 1;
  bool is_by_row = false;  // a segment per row of the filter, whose pixels lie side by side, and not per tap
  int64_t images = 1, height = 1, width = 1;  // of the output
  int64_t gap = 0;                            // bytes between pixels
  double density = 1.0;
  Integers integers = Integers::kAny;
  int32_t zero_point = 128;
  Layout layout = Layout::kRows;
  Dtype dtype = Dtype::kFloat32;
  bool is_int8 = false;
  int32_t y_zero_point = 0;
  float y_inverse_scale = 1.0f;
  Activation activation = Activation::kNone;
  bool has_bias = false, has_residual = false;
  bool has_nan_scale = false;  // of some images: they held a NaN
  int64_t padding = 0;         // of ldy
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;

  int64_t segments() const { return kernel_h * (is_by_row ? 1 : kernel_w); }
  int64_t K() const { return channels * kernel_h * kernel_w; }
  int64_t positions() const { return images * height * width; }
};

inline std::ostream& operator<<(std::ostream& out, const Int8Shape& shape) {
  out << "seed " << shape.seed << ": N " << shape.N << ", channels " << shape.channels << ", filter " << shape.kernel_h
      << "x" << shape.kernel_w << (shape.is_by_row ? " by row" : " by tap") << ", stride " << shape.stride
      << ", dilation " << shape.dilation << ", output " << shape.images << "x" << shape.height << "x" << shape.width
      << ", gap " << shape.gap << ", density " << shape.density << ", integers " << int(shape.integers)
      << ", zero point " << shape.zero_point << (shape.layout == Layout::kRows ? ", rows" : ", columns") << ", ";
  if (shape.is_int8) {
    out << "int8 with zero point " << shape.y_zero_point << " and inverse scale " << shape.y_inverse_scale;
  } else {
    out << dtype_name(shape.dtype);
  }
  return out << ", " << activation_name(shape.activation) << (shape.has_bias ? ", bias" : "")
             << (shape.has_residual ? ", residual" : "") << (shape.has_nan_scale ? ", NaN scales" : "") << ", padding "
             << shape.padding << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

// Everything that has no influence on the sums, at random.
inline void randomize_options(Int8Shape& shape, Random& random) {
  shape.zero_point = random.pick({0, 1, 127, 128, 255});
  shape.activation = random.pick(kAllActivations);
  shape.has_bias = random.chance(0.5);
  shape.has_nan_scale = random.chance(0.2);
  shape.padding = random.chance(0.5) ? 0 : random.integer(1, 9);
  shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
  shape.is_int8 = random.chance(0.25);
  if (shape.is_int8) {
    shape.y_zero_point = random.pick({0, 1, -128, 127, -20});
    shape.y_inverse_scale = random.pick({0.01f, 1.0f, 37.5f, 3e4f});
    return;
  }
  shape.layout = random.chance(0.5) ? Layout::kRows : Layout::kColumns;
  shape.dtype = random.pick({Dtype::kFloat32, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16});
  shape.has_residual = random.chance(0.4);
}

// y of one of the two kinds; nobody has written it.
struct Int8Output {
  Numbers numbers;
  Buffer<int8_t> bytes;
  static constexpr int8_t kUnwrittenByte = 0x5a;

  Int8Output(const Int8Shape& shape, int64_t size)
      : numbers(Numbers::unwritten(shape.dtype, shape.is_int8 ? 0 : size, shape.guard)),
        bytes(shape.is_int8 ? size : 0, shape.guard) {
    std::fill(bytes.begin(), bytes.end(), kUnwrittenByte);
  }
  int64_t size() const { return std::max(numbers.size(), bytes.size()); }
  bool is_unwritten(int64_t i) const { return bytes.size() > 0 ? bytes[i] == kUnwrittenByte : numbers.is_unwritten(i); }
  friend bool same_bits(const Int8Output& a, const Int8Output& b) {
    return same_bits(a.numbers, b.numbers) && std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin());
  }
};

class Int8Problem {
 public:
  explicit Int8Problem(const Int8Shape& shape) : Int8Problem(shape, Random(shape.seed)) {}

  const DenseInt8& weight() const { return weight_; }

  // function(arguments, number of blocks) with a fresh y, which is returned.
  template <class Args, class Function>
  Int8Output run_with(const PackedInt8<decltype(Args::weight)>& weight, Function function) const {
    Int8Output y(shape_, y_size());
    Args args;
    args.weight = weight.view();
    args.weight_scale = weight_scale_.data();
    args.weight_sum = weight_sum_.data();
    args.x.x = x_.data();
    args.x.images = shape_.images;
    args.x.height = shape_.height;
    args.x.width = shape_.width;
    args.x.image_stride = image_bytes_;
    args.x.row_stride = shape_.stride * row_bytes_;
    args.x.column_stride = shape_.stride * pixel_bytes_;
    args.x.segment_offset = segment_offset_.data();
    args.x.scale = x_scale_.data();
    args.x.zero_point = shape_.zero_point;
    args.layout = shape_.layout;
    args.dtype = shape_.dtype;
    args.is_int8 = shape_.is_int8;
    args.y_inverse_scale = shape_.y_inverse_scale;
    args.y_zero_point = shape_.y_zero_point;
    args.y = shape_.is_int8 ? static_cast<void*>(y.bytes.data()) : y.numbers.data();
    args.ldy = ldy_;
    args.residual = shape_.has_residual ? residual_.data() : nullptr;
    args.epilogue = {shape_.has_bias ? bias_.data() : nullptr, shape_.activation};
    function(args, args.weight.num_blocks());
    return y;
  }
  template <class Args>
  Int8Output run(const Kernel<Args>& kernel, const PackedInt8<decltype(Args::weight)>& weight) const {
    return run_with<Args>(
        weight, [&](const Args& args, int64_t num_blocks) { run_all(kernel, args, num_blocks, shape_.guard); });
  }

  void check(const Int8Output& y) const {
    std::vector<bool> is_result(static_cast<size_t>(y.size()));
    const int64_t pixels = shape_.height * shape_.width;
    for (int64_t m = 0; m < shape_.positions(); ++m) {
      for (int64_t n = 0; n < shape_.N; ++n) {
        const bool is_rows = shape_.layout == Layout::kRows;
        const int64_t at = is_rows ? m * ldy_ + n : m / pixels * ldy_ + n * pixels + m % pixels;
        is_result[static_cast<size_t>(at)] = true;
        check_element(y, at, m, n);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
    for (int64_t at = 0; at < y.size(); ++at) {
      ASSERT_TRUE(is_result[static_cast<size_t>(at)] || y.is_unwritten(at)) << "padding of y written at " << at;
    }
  }

 private:
  Int8Problem(const Int8Shape& shape, Random random)
      : shape_(shape),
        pixel_bytes_(shape.channels + (shape.is_by_row ? 0 : shape.gap)),
        row_bytes_(((shape.width - 1) * shape.stride + (shape.kernel_w - 1) * shape.dilation + 1) * pixel_bytes_),
        image_bytes_(((shape.height - 1) * shape.stride + (shape.kernel_h - 1) * shape.dilation + 1) * row_bytes_),
        ldy_((shape.layout == Layout::kRows ? shape.N : shape.N * shape.height * shape.width) + shape.padding),
        weight_(make_weight(shape, random)),
        x_(x_size(), shape.guard),
        x_scale_(shape.images, shape.guard),
        weight_scale_(shape.N, shape.guard),
        bias_(shape.has_bias ? shape.N : 0, shape.guard),
        weight_sum_(shape.N, shape.guard),
        segment_offset_(shape.segments(), shape.guard),
        residual_(shape.dtype, shape.has_residual ? y_size() : 0, shape.guard) {
    for (uint8_t& byte : x_) byte = activation_byte(random);
    const bool has_halves = shape.integers == Integers::kHalves;
    for (int64_t i = 0; i < shape.images; ++i) {
      x_scale_[i] = has_halves ? 0.5f : 0.01f + 0.005f * random.number();
      if (shape.has_nan_scale && i % 5 == 2) x_scale_[i] = std::numeric_limits<float>::quiet_NaN();
    }
    for (float& scale : weight_scale_) scale = has_halves ? 1.0f : 0.01f + 0.005f * random.number();
    for (float& value : bias_) value = has_halves ? 1.0f : random.number();
    for (int64_t n = 0; n < shape.N; ++n) {
      weight_sum_[n] = 0;
      for (int64_t k = 0; k < shape.K(); ++k) weight_sum_[n] += weight_.at(n, k);
    }
    for (int64_t s = 0; s < shape.segments(); ++s) segment_offset_[s] = segment_start(s);
    for (int64_t i = 0; i < residual_.size(); ++i) {
      residual_.set(i, static_cast<float>(round_to(shape.dtype, double(random.number()))));
    }
  }

  static DenseInt8 make_weight(const Int8Shape& shape, Random& random) {
    const bool is_small = shape.integers == Integers::kHalves;
    DenseInt8 weight = random_int8(random, shape.N, shape.K(), shape.segments(), shape.density, is_small ? -2 : -128,
                                   is_small ? 2 : 127);
    if (shape.integers == Integers::kLargest || shape.integers == Integers::kSmallest) {
      const auto extreme = random.pick<int8_t>({-128, 127});
      std::fill(weight.values.begin(), weight.values.end(), extreme);
    }
    return weight;
  }

  // The farthest from the zero point, on the two sides of it.
  uint8_t activation_byte(Random& random) const {
    if (shape_.integers == Integers::kLargest) return 255;
    if (shape_.integers == Integers::kSmallest) return 0;
    if (shape_.integers == Integers::kAny) return static_cast<uint8_t>(random.integer(0, 255));
    const int64_t near = shape_.zero_point + random.integer(-2, 2);
    return static_cast<uint8_t>(std::clamp<int64_t>(near, 0, 255));
  }

  int64_t segment_cols() const { return shape_.K() / shape_.segments(); }
  int64_t segment_start(int64_t s) const {
    if (shape_.is_by_row) return s * shape_.dilation * row_bytes_;
    return s / shape_.kernel_w * shape_.dilation * row_bytes_ + s % shape_.kernel_w * shape_.dilation * pixel_bytes_;
  }
  int64_t position_start(int64_t m) const {
    const int64_t column = m % shape_.width, row = m / shape_.width % shape_.height;
    const int64_t image = m / shape_.width / shape_.height;
    return image * image_bytes_ + shape_.stride * (row * row_bytes_ + column * pixel_bytes_);
  }

  // To the last byte that an output needs, and what may be read beyond it.
  int64_t x_size() const {
    if (shape_.positions() == 0 || shape_.K() == 0) return kReadBeyond;
    return position_start(shape_.positions() - 1) + segment_start(shape_.segments() - 1) + segment_cols() + kReadBeyond;
  }
  int64_t y_size() const {
    const int64_t lines = shape_.layout == Layout::kRows ? shape_.positions() : shape_.images;
    return shape_.positions() == 0 || shape_.N == 0 ? 0 : lines * ldy_ - shape_.padding;
  }

  int64_t exact_sum(int64_t m, int64_t n) const {
    const uint8_t* x = x_.data() + position_start(m);
    int64_t sum = 0;
    for (int64_t s = 0; s < shape_.segments(); ++s) {
      for (int64_t k = 0; k < segment_cols(); ++k) {
        const int64_t byte = x[segment_start(s) + k];
        sum += (byte - shape_.zero_point) * weight_.at(n, s * segment_cols() + k);
      }
    }
    return sum;
  }

  // The whole chain of roundings that ops.h states, around an exact sum.
  void check_element(const Int8Output& y, int64_t at, int64_t m, int64_t n) const {
    const int64_t sum = exact_sum(m, n);
    ASSERT_LE(std::abs(sum), int64_t(std::numeric_limits<int32_t>::max()));
    const float scale = x_scale_[m / shape_.width / shape_.height] * weight_scale_[n];
    float v = std::fma(float(int32_t(sum)), scale, shape_.has_bias ? bias_[n] : 0.0f);
    if (shape_.has_residual) v += residual_[at];
    const Expected expected = expect_activated(double(v), shape_.activation);
    if (shape_.is_int8) {
      ASSERT_GE(y.bytes[at], requantized(expected.value - expected.bound)) << "position " << m << ", row " << n;
      ASSERT_LE(y.bytes[at], requantized(expected.value + expected.bound)) << "position " << m << ", row " << n;
    } else {
      ASSERT_TRUE(is_close(y.numbers, at, expected))
          << describe(y.numbers, at, expected) << " at position " << m << ", row " << n << ", sum " << sum;
    }
  }

  int requantized(double v) const {
    if (std::isnan(v)) return shape_.y_zero_point;
    const double product = round_to(Dtype::kFloat32, v * double(shape_.y_inverse_scale));
    return static_cast<int>(std::clamp(std::nearbyint(product) + shape_.y_zero_point, -128.0, 127.0));
  }

  Int8Shape shape_;
  int64_t pixel_bytes_, row_bytes_, image_bytes_, ldy_;
  DenseInt8 weight_;
  Buffer<uint8_t> x_;
  Buffer<float> x_scale_, weight_scale_, bias_;
  Buffer<int32_t> weight_sum_;
  Buffer<int64_t> segment_offset_;
  Numbers residual_;
};

}  // namespace sparsecore::test
