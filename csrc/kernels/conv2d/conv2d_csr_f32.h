// conv2d, CSR and block CSR, float32, direct: algorithm text. All channels of a strip are packed, then every row or
// block of rows of the weight runs over it with an offset table (strip.h).
#pragma once

#include "kernels/conv2d/strip.h"

namespace sparsecore {
namespace {

template <class S, class Args>
struct Conv2dCsrF32 {
  static bool supports(const Args& args) {
    const int64_t R = rows_of_block(args.weight);
    return (R == 1 || R == 4 || R == 8) && args.weight.rows / args.groups % R == 0;
  }

  // One plane for all kw: all channels lie in second-level cache at once, where KW times the bytes would hurt more than
  // unaligned loads.
  static Conv2dPlan plan_of(const Args& args) {
    Conv2dPlan plan = make_grid<S>(args, false);
    cut_grid<S>(plan, balanced_vectors(divide_up(plan.positions, S::kLanes), kMaxVectors));
    return plan;
  }

  static int64_t num_tiles(const Args& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // [ strips of all channels | a block of output rows | pieces | offsets ]
  static int64_t buffer_floats(const Args& args, const Conv2dPlan& plan) {
    return rows_of_block(args.weight) * divide_up(plan.vectors * S::kLanes, 16) * 16;
  }
  static int64_t scratch_bytes(const Args& args) {
    const Conv2dPlan plan = plan_of(args);
    return (args.channels * plan.channel_floats() + buffer_floats(args, plan)) * int64_t(sizeof(float)) +
           plan.max_pieces() * int64_t(sizeof(Piece)) + args.weight.cols * int64_t(sizeof(int32_t));
  }

  static void run(const Args& args, Range blocks, Range tiles, void* scratch) {
    const Conv2dPlan plan = plan_of(args);
    float* strip = static_cast<float*>(scratch);
    float* buffer = strip + args.channels * plan.channel_floats();
    Piece* pieces = reinterpret_cast<Piece*>(buffer + buffer_floats(args, plan));
    int32_t* offsets = reinterpret_cast<int32_t*>(pieces + plan.max_pieces());
    const int64_t blocks_per_group = args.weight.rows / args.groups / rows_of_block(args.weight);
    const int64_t channels_per_group = args.channels / args.groups;
    fill_offsets(args, plan, channels_per_group, offsets);
    const Range channels{blocks.begin / blocks_per_group * channels_per_group,
                         ((blocks.end - 1) / blocks_per_group + 1) * channels_per_group};
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan);
      const int64_t begin = t % strips_per_image<S>(plan) * plan.vectors * S::kLanes;
      const StripOutput output{image, begin, smaller(plan.vectors * S::kLanes, plan.positions - begin)};
      fill_zero(strip, channels.size() * plan.channel_floats());
      pack_strip<S>(args, plan, image, channels, pieces, fill_pieces(args, plan, begin, pieces), strip);
      with_rows_of_block(args.weight, [&](auto rows) {
        run_strip<decltype(rows)::value>(args, plan, blocks, output, strip, offsets, buffer);
      });
    }
  }

  template <int R>
  static void run_strip(const Args& args, const Conv2dPlan& plan, Range blocks, const StripOutput& output,
                        const float* strip, const int32_t* offsets, float* buffer) {
    const int64_t W = divide_up(output.count, S::kLanes) * S::kLanes;
    const int64_t blocks_per_group = args.weight.rows / args.groups / R;
    const int64_t group_floats = args.channels / args.groups * plan.channel_floats();
    const int64_t first_group = blocks.begin / blocks_per_group;
    const int64_t row_floats = args.out_height * args.out_width;
    float* direct = args.residual == nullptr ? direct_output(args, plan, output, W) : nullptr;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const float* tile = strip + (block / blocks_per_group - first_group) * group_floats;
      const Range n{block * R, (block + 1) * R};
      // Rows of y are far apart. First convolution of ResNet-50 in a pass 2.58 -> 2.47 ms, of MobileNetV1 0.43 -> 0.42.
      for (int64_t row = n.begin; row < n.end; ++row) {
        output.for_each_part(args, plan.pitch, row, [&](int64_t to, int64_t, int64_t length) SPARSECORE_LAMBDA_INLINE {
          if (args.dtype == Dtype::kFloat32) prefetch_for_writing(static_cast<float*>(args.y) + to, length);
        });
      }
      if (args.residual != nullptr) load_residual<S>(args, plan, output, n, W, buffer);
      run_block<S, R>(
          args.weight, args.epilogue, block, tile, W,
          [=](int32_t k) SPARSECORE_LAMBDA_INLINE { return int64_t(offsets[k]); },
          args.residual == nullptr ? nullptr : buffer,
          [=](int r) SPARSECORE_LAMBDA_INLINE {
            return direct != nullptr ? direct + (n.begin + r) * row_floats : buffer + r * W;
          });
      if (direct == nullptr) store_strip<S>(args, plan, output, n, W, buffer);
    }
  }
};

}  // namespace
}  // namespace sparsecore
