// conv2d, CSR float32, direct: algorithm text. All channels of a strip are packed, then every row of the weight runs
// over it with an offset table (strip.h).
#pragma once

#include "kernels/conv2d/strip.h"

namespace sparsecore {
namespace {

template <class S, int V>
void run_strip(const Conv2dArgs& args, const Conv2dPlan& plan, Range rows, int64_t image, int64_t begin,
               const float* strip, const int32_t* offsets, float* out) {
  constexpr int64_t W = V * S::kLanes;
  const int64_t rows_per_group = args.weight.rows / args.groups;
  const int64_t group_floats = args.channels / args.groups * plan.phases * plan.strip_floats;
  const int64_t first_group = rows.begin / rows_per_group;
  const int64_t count = smaller(W, plan.positions - begin);
  const bool is_direct = plan.pitch == args.out_width && count == W;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    const float* tile = strip + (n / rows_per_group - first_group) * group_floats;
    typename S::F32 acc[V];
    multiply_row<S, V>(args.weight, n, tile, [=](int32_t k) { return int64_t(offsets[k]); }, acc);
    apply_epilogue<S, V>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
    float* plane = output_plane(args, image, n);
    float* to = is_direct ? plane + begin : out;
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) S::store(to + j * S::kLanes, acc[j]);
    if (!is_direct) store_positions<S>(args, plan.pitch, out, begin, count, plane);
  }
}

template <class S>
struct Conv2dCsrF32 {
  static bool supports(const Conv2dArgs&) { return true; }

  static int64_t num_tiles(const Conv2dArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(make_plan<S>(args, kMaxVectors));
  }

  static int64_t strip_bytes(const Conv2dArgs& args, const Conv2dPlan& plan) {
    const int64_t floats = args.channels * plan.phases * plan.strip_floats;
    return divide_up(floats * int64_t(sizeof(float)), 64) * 64;
  }

  // [ strips of all channels | one row of output | offsets ]
  static int64_t scratch_bytes(const Conv2dArgs& args) {
    const Conv2dPlan plan = make_plan<S>(args, kMaxVectors);
    const int64_t out_bytes = kMaxVectors * S::kLanes * int64_t(sizeof(float));
    return strip_bytes(args, plan) + out_bytes + args.weight.cols * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dArgs& args, Range rows, Range tiles, void* scratch) {
    const Conv2dPlan plan = make_plan<S>(args, kMaxVectors);
    float* strip = static_cast<float*>(scratch);
    float* out = strip + strip_bytes(args, plan) / int64_t(sizeof(float));
    int32_t* offsets = reinterpret_cast<int32_t*>(out + kMaxVectors * S::kLanes);
    const int64_t rows_per_group = args.weight.rows / args.groups;
    const int64_t channels_per_group = args.channels / args.groups;
    fill_offsets(args, plan, channels_per_group, offsets);
    const Range channels{rows.begin / rows_per_group * channels_per_group,
                         ((rows.end - 1) / rows_per_group + 1) * channels_per_group};
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan);
      const int64_t begin = t % strips_per_image<S>(plan) * plan.vectors * S::kLanes;
      pack_strip<S>(args, plan, image, channels, begin, strip);
      with_vectors(static_cast<int>(plan.vectors), [&](auto count) {
        run_strip<S, decltype(count)::value>(args, plan, rows, image, begin, strip, offsets, out);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
