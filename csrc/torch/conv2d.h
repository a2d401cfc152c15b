// Settings of a convolution as they come from Python, and their checks.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "sparsecore/ops.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// Far beyond any network, and small enough that no product of sizes overflows.
inline constexpr int64_t kMaxSetting = 65536;

// The two entries of a list argument.
struct Pair {
  int64_t h, w;
};
inline Pair pair_of(const std::vector<int64_t>& list, const char* name, int64_t least) {
  check(list.size() == 2, "expected two numbers for ", name, ", got ", list.size());
  for (const int64_t value : list) {
    check(value >= least && value <= kMaxSetting, "expected ", name, " from ", least, " to ", kMaxSetting, ", got ",
          value);
  }
  return {list[0], list[1]};
}

inline int64_t output_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = dilation * (kernel - 1) + 1;
  check(input + 2 * padding >= reach, "expected an input of at least ", reach, " pixels with its padding, got ",
        input + 2 * padding);
  return (input + 2 * padding - reach) / stride + 1;
}

struct Conv2dSettings {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
};

// The sizes of a convolution of x.
inline void set_shape(ConvShape& shape, const Tensor& x, const Conv2dSettings& settings) {
  check(x.dim() == 4, "expected x [batch, C, H, W], got shape ", shape_text(x));
  const Pair size = pair_of(settings.kernel_size, "kernel_size", 1), step = pair_of(settings.stride, "stride", 1);
  const Pair pad = pair_of(settings.padding, "padding", 0), spread = pair_of(settings.dilation, "dilation", 1);
  shape.batch = x.size(0);
  shape.channels = x.size(1);
  shape.height = x.size(2);
  shape.width = x.size(3);
  shape.kernel_h = size.h, shape.kernel_w = size.w;
  shape.stride_h = step.h, shape.stride_w = step.w;
  shape.padding_h = pad.h, shape.padding_w = pad.w;
  shape.dilation_h = spread.h, shape.dilation_w = spread.w;
  shape.out_height = output_size(shape.height, size.h, step.h, pad.h, spread.h);
  shape.out_width = output_size(shape.width, size.w, step.w, pad.w, spread.w);
}

// What a kernel packs at least: the rows of `channels` channels that a filter reaches, for each of its columns.
inline void check_reach(const ConvShape& shape, int64_t channels) {
  const double reach = double(channels) * double(shape.dilation_h) * double(shape.kernel_h * shape.kernel_w) *
                       double(shape.width + 2 * shape.padding_w);
  check(reach < double(std::numeric_limits<int32_t>::max()), "expected a filter that reaches over fewer than 2^31 ",
        "numbers of the input, got about ", reach, "; split the layer over channels");
}

}  // namespace sparsecore::torch_binding
