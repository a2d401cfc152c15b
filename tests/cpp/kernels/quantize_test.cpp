// The oracle computes every byte anew; since each kernel must equal it, all kernels equal each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <vector>

#include "harness.h"
#include "numbers.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr uint8_t kUnwrittenByte = 0x5a;

struct Shape {
  int64_t images = 1, channels = 1, height = 1, width = 1;
  int64_t padding_h = 0, padding_w = 0;
  bool channels_last = true;
  bool is_int8 = false;
  Dtype dtype = Dtype::kFloat32;
  bool is_dynamic = true;
  float scale = 1.0f;
  int32_t zero_point = 0;
  bool has_channel_scale = false;
  int64_t gap = 0;  // bytes between pixels of out
  Guard guard = Guard::kAfter;

  int64_t size() const { return images * channels * height * width; }
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << shape.images << "x" << shape.channels << "x" << shape.height << "x" << shape.width << ", padding "
      << shape.padding_h << "x" << shape.padding_w << (shape.channels_last ? ", channels last, " : ", channels first, ")
      << (shape.is_int8 ? "int8" : dtype_name(shape.dtype));
  if (shape.is_dynamic) {
    out << ", dynamic";
  } else {
    out << ", scale " << shape.scale << ", zero point " << shape.zero_point;
  }
  return out << (shape.has_channel_scale ? ", channel scales" : "") << ", gap " << shape.gap
             << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

struct Result {
  Buffer<uint8_t> out;
  Buffer<float> scale;

  bool operator==(const Result& other) const {
    return std::equal(out.begin(), out.end(), other.out.begin()) && same_bits(scale, other.scale);
  }
};

// x(image, channel, row, column) is number i of `content`, in that order whatever the layout.
class Problem {
 public:
  Problem(const Shape& shape, const std::vector<float>& content)
      : shape_(shape),
        numbers_(shape.dtype, shape.is_int8 ? 0 : shape.size(), shape.guard),
        integers_(shape.is_int8 ? shape.size() : 0, shape.guard),
        channel_inverse_(shape.has_channel_scale ? shape.channels : 0, shape.guard) {
    for (int64_t i = 0; i < shape.size(); ++i) {
      const int64_t plane = shape.height * shape.width;
      const int64_t image = i / plane / shape.channels, channel = i / plane % shape.channels, pixel = i % plane;
      const int64_t at = shape.channels_last ? (image * plane + pixel) * shape.channels + channel : i;
      const float value = content[static_cast<size_t>(i)];
      if (shape.is_int8) {
        integers_[at] = static_cast<int8_t>(value);
      } else {
        numbers_.set(at, static_cast<float>(round_to(shape.dtype, double(value))));
      }
      place_.push_back(at);
    }
    for (int64_t c = 0; c < channel_inverse_.size(); ++c) channel_inverse_[c] = 0.3f + float(c % 7);
  }

  QuantizeArgs args() const {
    QuantizeArgs args;
    args.x = shape_.is_int8 ? static_cast<const void*>(integers_.data()) : numbers_.data();
    args.dtype = shape_.dtype;
    args.is_int8 = shape_.is_int8;
    args.channels_last = shape_.channels_last;
    args.images = shape_.images;
    args.channels = shape_.channels;
    args.height = shape_.height;
    args.width = shape_.width;
    args.padding_h = shape_.padding_h;
    args.padding_w = shape_.padding_w;
    args.is_dynamic = shape_.is_dynamic;
    args.zero_point = shape_.zero_point;
    args.channel_inverse_scale = shape_.has_channel_scale ? channel_inverse_.data() : nullptr;
    args.ld_out = shape_.channels + shape_.gap;
    return args;
  }

  // function(arguments) with outputs that nobody has written; scales are there if they are not dynamic.
  template <class Function>
  Result run_with(Function function) const {
    Result result{Buffer<uint8_t>(shape_.images * padded_height() * padded_width() * ld(), shape_.guard),
                  unwritten_output(shape_.images, shape_.guard)};
    std::fill(result.out.begin(), result.out.end(), kUnwrittenByte);
    if (!shape_.is_dynamic) std::fill(result.scale.begin(), result.scale.end(), shape_.scale);
    QuantizeArgs with_output = args();
    with_output.out = result.out.data();
    with_output.scale = result.scale.data();
    function(with_output);
    return result;
  }

  void check(const Result& result) const {
    for (int64_t image = 0; image < shape_.images; ++image) {
      check_scale(image, result.scale[image]);
      for (int64_t row = 0; row < padded_height(); ++row) {
        for (int64_t column = 0; column < padded_width(); ++column) {
          const int64_t at = ((image * padded_height() + row) * padded_width() + column) * ld();
          check_pixel(image, row - shape_.padding_h, column - shape_.padding_w, result.scale[image],
                      result.out.data() + at);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }

  // max|x| / 127, or what the contract says instead.
  void check_scale(int64_t image, float scale) const {
    ASSERT_FALSE(is_unwritten(scale)) << "image " << image;
    if (!shape_.is_dynamic) {
      ASSERT_EQ(scale, shape_.scale);
      return;
    }
    float largest = 0.0f;
    bool is_finite = true;
    for (int64_t i = 0; i < shape_.size() / shape_.images; ++i) {
      const float value = balanced(image * (shape_.size() / shape_.images) + i);
      is_finite &= std::isfinite(value);
      largest = std::max(largest, std::fabs(value));
    }
    if (!is_finite) {
      ASSERT_TRUE(std::isnan(scale)) << "image " << image;
    } else {
      ASSERT_EQ(scale, largest < 127.0f * kSmallestNormal ? 1.0f : largest / 127.0f) << "image " << image;
    }
  }

 private:
  int64_t padded_height() const { return shape_.height + 2 * shape_.padding_h; }
  int64_t padded_width() const { return shape_.width + 2 * shape_.padding_w; }
  int64_t ld() const { return shape_.channels + shape_.gap; }

  // Number i, divided by the scale of its channel.
  float balanced(int64_t i) const {
    const float value = numbers_[place_[static_cast<size_t>(i)]];
    if (!shape_.has_channel_scale) return value;
    return value * channel_inverse_[i / (shape_.height * shape_.width) % shape_.channels];
  }

  int byte_of(int64_t i, float scale) const {
    if (shape_.is_int8) return integers_[place_[static_cast<size_t>(i)]] + 128;
    const float quotient = balanced(i) * (1.0f / scale);
    if (std::isnan(quotient)) return 128 + shape_.zero_point;
    const double q = std::nearbyint(double(quotient)) + double(shape_.zero_point);
    return 128 + static_cast<int>(std::clamp(q, -128.0, 127.0));
  }

  void check_pixel(int64_t image, int64_t row, int64_t column, float scale, const uint8_t* out) const {
    const bool is_inside = row >= 0 && row < shape_.height && column >= 0 && column < shape_.width;
    for (int64_t c = 0; c < shape_.channels; ++c) {
      const int64_t i = ((image * shape_.channels + c) * shape_.height + row) * shape_.width + column;
      ASSERT_EQ(out[c], is_inside ? byte_of(i, scale) : 128 + shape_.zero_point)
          << "image " << image << ", channel " << c << ", pixel " << row << ", " << column;
    }
    for (int64_t c = shape_.channels; is_inside && c < ld(); ++c) {
      ASSERT_EQ(out[c], kUnwrittenByte) << "between the pixels, after pixel " << row << ", " << column;
    }
  }

  Shape shape_;
  Numbers numbers_;
  Buffer<int8_t> integers_;
  Buffer<float> channel_inverse_;
  std::vector<int64_t> place_;
};

template <class Value>
std::vector<float> make_content(const Shape& shape, Value value) {
  std::vector<float> content(static_cast<size_t>(shape.size()));
  for (float& x : content) x = value();
  return content;
}

class QuantizeTest : public KernelTest<QuantizeArgs> {
 protected:
  Result run(const Problem& problem, Guard guard) {
    return problem.run_with([&](const QuantizeArgs& args) { run_all(kernel(), args, 1, guard); });
  }
  void check(const Shape& shape, const std::vector<float>& content) {
    const Case trace(shape);
    const Problem problem(shape, content);
    ASSERT_TRUE(kernel().supports(problem.args()));
    problem.check(run(problem, shape.guard));
  }
  // One image of one row of numbers, on both sides of a guard page.
  void check_row(const std::vector<float>& row, Shape shape = {}) {
    shape.channels = static_cast<int64_t>(row.size());
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      shape.guard = guard;
      check(shape, row);
    }
  }
  void check_static(const std::vector<float>& row, float scale, int32_t zero_point) {
    Shape shape;
    shape.is_dynamic = false;
    shape.scale = scale;
    shape.zero_point = zero_point;
    check_row(row, shape);
  }
};
SPARSECORE_TEST_EACH_KERNEL(QuantizeTest, quantize_kernels());

TEST_P(QuantizeTest, RowsOfEveryLength) {
  for (const int64_t channels : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 300}) {
    for (const int64_t images : {1, 2, 5}) {
      for (const Dtype dtype : kAllDtypes) {
        Random random(static_cast<uint64_t>(channels * 10 + images));
        Shape shape{.images = images, .channels = channels, .dtype = dtype};
        shape.has_channel_scale = random.chance(0.5);
        shape.gap = random.pick<int64_t>({0, 3, 64});
        const auto content = make_content(shape, [&] { return 10.0f * random.number(); });
        check(shape, content);
        shape.is_dynamic = false;
        shape.scale = 0.04f;
        shape.zero_point = random.pick({0, -37, 127, -128});
        check(shape, content);
        if (HasFailure()) return;
      }
    }
  }
}

// Borders, both orders of channels, and squares that are transposed.
TEST_P(QuantizeTest, Images) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    Shape shape{.images = random.integer(1, 3), .channels = random.pick<int64_t>({1, 3, 8, 15, 16, 17, 40})};
    shape.height = random.integer(1, 5);
    shape.width = random.pick<int64_t>({1, 2, 7, 8, 16, 19, 33});
    shape.padding_h = random.integer(0, 2);
    shape.padding_w = random.integer(0, 2);
    shape.channels_last = random.chance(0.5);
    shape.is_int8 = random.chance(0.2);
    shape.dtype = random.pick(kAllDtypes);
    shape.is_dynamic = false;
    shape.scale = 0.01f;
    shape.zero_point = static_cast<int32_t>(random.integer(-128, 127));
    shape.has_channel_scale = !shape.is_int8 && random.chance(0.5);
    shape.gap = random.pick<int64_t>({0, 0, 5});
    shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    const float factor = shape.is_int8 ? 127.9f : 1.0f;
    const auto content = make_content(shape, [&] { return factor * random.number(); });
    check(shape, content);
    if (HasFailure()) return;
  }
}

// More pixels than a tile has: several rows in each, one, and a last one that is not full.
TEST_P(QuantizeTest, ImagesOfSeveralTiles) {
  for (const int64_t width : {20, 100, 255, 256, 600}) {
    for (const bool channels_last : {false, true}) {
      for (const int64_t padding : {0, 2}) {
        for (const bool is_int8 : {false, true}) {
          Random random(static_cast<uint64_t>(width));
          Shape shape{.images = 2, .channels = 5, .height = 1200 / width + 1, .width = width};
          shape.padding_h = padding;
          shape.padding_w = padding;
          shape.channels_last = channels_last;
          shape.is_int8 = is_int8;
          shape.is_dynamic = false;
          shape.scale = 0.01f;
          shape.zero_point = 3;
          check(shape, make_content(shape, [&] { return random.number() * (is_int8 ? 127.9f : 1.0f); }));
          if (HasFailure()) return;
        }
      }
    }
  }
}

// Without an out, images have any height; with one, they are rows of pixels.
TEST_P(QuantizeTest, DynamicScalesOfImages) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    Shape shape{.images = random.integer(1, 4), .channels = random.pick<int64_t>({1, 3, 8, 17})};
    shape.height = random.chance(0.5) ? 1 : random.integer(2, 5);
    shape.width = random.pick<int64_t>({1, 5, 8, 19});
    shape.channels_last = random.chance(0.5);
    shape.dtype = random.pick(kAllDtypes);
    shape.has_channel_scale = random.chance(0.5);
    shape.gap = random.pick<int64_t>({0, 5});
    shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    const double special_chance = random.pick({0.0, 0.02});
    const Problem problem(shape, make_content(shape, [&] { return random.number_or_special(special_chance); }));
    const Result scales = problem.run_with([&](QuantizeArgs args) {
      args.out = nullptr;
      run_all(kernel(), args, 1, shape.guard);
    });
    for (int64_t image = 0; image < shape.images; ++image) problem.check_scale(image, scales.scale[image]);
    if (shape.height == 1) problem.check(run(problem, shape.guard));
    if (HasFailure()) return;
  }
}

TEST_P(QuantizeTest, HalvesGoToTheEvenNeighbour) {
  std::vector<float> row;
  for (int half = -300; half <= 300; ++half) row.push_back(float(half) * 0.5f);
  for (const int32_t zero_point : {0, 1, -1, 127, -128}) check_static(row, 1.0f, zero_point);
  for (float& x : row) x *= 0.25f;
  check_static(row, 0.25f, 0);
  check_row({127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -126.5f, -127.0f});  // dynamic scale 1
}

// Just below and above every half, where the rounding of the product would tip over.
TEST_P(QuantizeTest, NeighboursOfHalves) {
  for (const float scale : {1.0f, 0.1f, 1.0f / 3.0f, 0.0078431377f, 3e-20f, 7e20f}) {
    std::vector<float> row;
    for (int step = -130; step <= 130; ++step) {
      const float half = (float(step) + 0.5f) * scale;
      for (const float x : {std::nextafterf(half, -kInf), half, std::nextafterf(half, kInf)}) row.push_back(x);
    }
    check_static(row, scale, 0);
    check_static(row, scale, 5);
  }
}

TEST_P(QuantizeTest, ClampsToTheRangeOfInt8) {
  const std::vector<float> row{1e9f,    -1e9f,    126.4f,    126.6f, 127.4f, 127.6f, 128.0f,   -127.6f,   -128.4f,
                               -128.6f, kLargest, -kLargest, 3e9f,   -3e9f,  1e19f,  32768.0f, -32769.0f, 65536.0f};
  for (const int32_t zero_point : {0, 1, -1, 100, 127, -128}) {
    check_static(row, 1.0f, zero_point);
    check_static(row, 1e-30f, zero_point);
  }
}

TEST_P(QuantizeTest, StaticNanGivesTheZeroPointAndInfinitiesTheEnds) {
  for (const int64_t length : {3, 8, 11, 17}) {
    for (const int32_t zero_point : {0, 17, -128}) {
      std::vector<float> row(static_cast<size_t>(length), 1.0f);
      row[0] = kNan;
      row[1] = kInf;
      row.back() = -kInf;
      check_static(row, 0.5f, zero_point);
      const Problem problem({.channels = length, .is_dynamic = false, .zero_point = zero_point}, row);
      const Result result = run(problem, Guard::kAfter);
      EXPECT_EQ(result.out[0], 128 + zero_point);
      EXPECT_EQ(result.out[1], 255);
      EXPECT_EQ(result.out[length - 1], 0);
    }
  }
}

// NaN or an infinity, or the largest value, at every place of an image, with neighbours that are fine.
TEST_P(QuantizeTest, DynamicScaleSeesEveryElement) {
  for (const int64_t channels : {1, 5, 8, 9, 20, 33}) {
    for (const float special : {5.0f, -5.0f, kNan, -kNan, kInf, -kInf}) {
      for (int64_t at = 0; at < channels; ++at) {
        Random random(static_cast<uint64_t>(channels * 100 + at));
        const Shape shape{.images = 3, .channels = channels};
        std::vector<float> content = make_content(shape, [&] { return random.number(); });
        content[static_cast<size_t>(channels + at)] = special;
        check(shape, content);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(QuantizeTest, ZeroImages) {
  check_row(std::vector<float>(20, 0.0f));
  check_row(std::vector<float>(20, -0.0f));
  check_row({0.0f, -0.0f, 0.0f});
}

TEST_P(QuantizeTest, TinyAndHugeImages) {
  for (const float peak : {kSmallest, 100.0f * kSmallest, kSmallestNormal, 126.0f * kSmallestNormal,
                           std::nextafterf(127.0f * kSmallestNormal, 0.0f), 127.0f * kSmallestNormal,
                           128.0f * kSmallestNormal, 1e-30f, kLargest}) {
    for (const float sign : {1.0f, -1.0f}) {
      Random random(1);
      std::vector<float> row(21);
      for (float& x : row) x = peak * random.number();
      row[13] = sign * peak;
      check_row(row);
    }
  }
}

TEST_P(QuantizeTest, AnyFloatAtAll) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    std::vector<float> row(static_cast<size_t>(random.integer(1, 40)));
    for (float& x : row) x = random.any_float();
    check_row(row, {.dtype = random.pick(kAllDtypes)});
    check_static(row, std::max(std::fabs(random.number()), 1e-3f), static_cast<int32_t>(random.integer(-128, 127)));
    if (HasFailure()) return;
  }
}

TEST_P(QuantizeTest, AnySplitGivesTheSame) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    Shape shape{.images = random.integer(1, 9), .channels = random.integer(1, 40)};
    shape.is_dynamic = random.chance(0.5);
    if (!shape.is_dynamic) {
      shape.height = random.integer(1, 6);
      shape.width = random.pick<int64_t>({1, 3, 200});
      shape.padding_h = random.integer(0, 2);
      shape.padding_w = random.integer(0, 2);
      shape.scale = 0.01f;
    }
    const Problem problem(shape, make_content(shape, [&] { return random.number(); }));
    const Result parts = problem.run_with(
        [&](const QuantizeArgs& args) { run_split(kernel(), args, {0, 1}, {0, kernel().num_tiles(args)}, random); });
    problem.check(parts);
    ASSERT_TRUE(parts == run(problem, Guard::kAfter));
  }
}

TEST_P(QuantizeTest, NoImages) {
  EXPECT_EQ(kernel().num_tiles(Problem({.images = 0}, {}).args()), 0);
  EXPECT_EQ(kernel().num_tiles(Problem({.images = 0, .height = 3, .is_dynamic = false}, {}).args()), 0);
}

}  // namespace
}  // namespace sparsecore::test
