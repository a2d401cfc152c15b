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
  const int64_t group_floats = args.channels / args.groups * plan.channel_floats();
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

  // One plane for all kw: all channels lie in second-level cache at once, where KW times the bytes would hurt more than
  // unaligned loads.
  static Conv2dPlan plan_of(const Conv2dArgs& args) {
    Conv2dPlan plan = make_grid<S>(args, false);
    cut_grid<S>(plan, balanced_vectors(divide_up(plan.positions, S::kLanes), kMaxVectors));
    return plan;
  }

  static int64_t num_tiles(const Conv2dArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // [ strips of all channels | one row of output | pieces | offsets ]
  static int64_t scratch_bytes(const Conv2dArgs& args) {
    const Conv2dPlan plan = plan_of(args);
    return (args.channels * plan.channel_floats() + kMaxVectors * S::kLanes) * int64_t(sizeof(float)) +
           plan.max_pieces() * int64_t(sizeof(Piece)) + args.weight.cols * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dArgs& args, Range rows, Range tiles, void* scratch) {
    const Conv2dPlan plan = plan_of(args);
    float* strip = static_cast<float*>(scratch);
    float* out = strip + args.channels * plan.channel_floats();
    Piece* pieces = reinterpret_cast<Piece*>(out + kMaxVectors * S::kLanes);
    int32_t* offsets = reinterpret_cast<int32_t*>(pieces + plan.max_pieces());
    const int64_t rows_per_group = args.weight.rows / args.groups;
    const int64_t channels_per_group = args.channels / args.groups;
    fill_offsets(args, plan, channels_per_group, offsets);
    const Range channels{rows.begin / rows_per_group * channels_per_group,
                         ((rows.end - 1) / rows_per_group + 1) * channels_per_group};
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan);
      const int64_t begin = t % strips_per_image<S>(plan) * plan.vectors * S::kLanes;
      fill_zero(strip, channels.size() * plan.channel_floats());
      pack_strip<S>(args, plan, image, channels, pieces, fill_pieces(args, plan, begin, pieces), strip);
      with_vectors(static_cast<int>(plan.vectors), [&](auto count) {
        run_strip<S, decltype(count)::value>(args, plan, rows, image, begin, strip, offsets, out);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
