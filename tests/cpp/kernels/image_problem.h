// What the tests of operations that slide a window over images share: conv2d, depthwise and pool2d. A Shape has Pairs
// image, filter (of taps), stride, padding and dilation, and the batch.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "numbers.h"
#include "oracle.h"

namespace sparsecore::test {

struct Pair {
  int64_t h = 1, w = 1;
};

inline std::ostream& operator<<(std::ostream& out, Pair pair) { return out << pair.h << "x" << pair.w; }

// Size of the output. With ceil_mode the last window may end outside, but begins inside of the image or of the padding
// before it, as torch defines it.
template <class Shape>
Pair output_of(const Shape& shape, bool ceil_mode = false) {
  const auto size = [=](int64_t input, int64_t taps, int64_t step, int64_t pad, int64_t spread) {
    const int64_t room = input + 2 * pad - (spread * (taps - 1) + 1) + (ceil_mode ? step - 1 : 0);
    const int64_t result = room < 0 ? 0 : room / step + 1;
    return ceil_mode && (result - 1) * step >= input + pad ? result - 1 : result;
  };
  return {size(shape.image.h, shape.filter.h, shape.stride.h, shape.padding.h, shape.dilation.h),
          size(shape.image.w, shape.filter.w, shape.stride.w, shape.padding.w, shape.dilation.w)};
}

template <class Shape>
void print_windows(std::ostream& out, const Shape& shape) {
  out << ", image " << shape.image << ", filter " << shape.filter << ", stride " << shape.stride << ", padding "
      << shape.padding << ", dilation " << shape.dilation;
}

template <class Args, class Shape>
void set_sizes(Args& args, const Shape& shape) {
  args.batch = shape.batch;
  args.height = shape.image.h;
  args.width = shape.image.w;
  args.out_height = shape.output().h;
  args.out_width = shape.output().w;
  args.kernel_h = shape.filter.h;
  args.kernel_w = shape.filter.w;
  args.stride_h = shape.stride.h;
  args.stride_w = shape.stride.w;
  args.padding_h = shape.padding.h;
  args.padding_w = shape.padding.w;
  args.dilation_h = shape.dilation.h;
  args.dilation_w = shape.dilation.w;
}

// The pixel of a plane that a tap of an output reads; none in the padding.
template <class Shape>
std::optional<int64_t> pixel_of(const Shape& shape, Pair output, Pair tap) {
  const int64_t h = output.h * shape.stride.h - shape.padding.h + tap.h * shape.dilation.h;
  const int64_t w = output.w * shape.stride.w - shape.padding.w + tap.w * shape.dilation.w;
  if (h < 0 || h >= shape.image.h || w < 0 || w >= shape.image.w) return std::nullopt;
  return h * shape.image.w + w;
}

// Compares y[planes, OH, OW] with expect(plane, output pixel, its place in y).
template <class Shape, class Expect>
void check_planes(const Numbers& y, const Shape& shape, int64_t planes, Expect expect) {
  int64_t at = 0;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (Pair pixel{0, 0}; pixel.h < shape.output().h; ++pixel.h) {
      for (pixel.w = 0; pixel.w < shape.output().w; ++pixel.w, ++at) {
        const Expected expected = expect(plane, pixel, static_cast<size_t>(at));
        ASSERT_TRUE(is_close(y, at, expected))
            << describe(y, at, expected) << " in plane " << plane << ", pixel " << pixel.h << ", " << pixel.w;
      }
    }
  }
  ASSERT_EQ(at, y.size());
}

}  // namespace sparsecore::test
