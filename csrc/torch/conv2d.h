// Settings of a convolution as they come from Python, and their checks.
#pragma once

#include <cstdint>
#include <vector>

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

// Settings of a convolution as they come from Python.
struct Conv2dSettings {
  const std::vector<int64_t>&kernel_size, &stride, &padding, &dilation;
  int64_t groups;
};

}  // namespace sparsecore::torch_binding
