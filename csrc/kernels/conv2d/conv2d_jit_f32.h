// conv2d, generated code: algorithm text. The code reads the taps where they lie in a strip of the input (strip.h, one
// plane): it loads an activation once for all rows of a block, so that a load which crosses cache lines costs less than
// more copies.
#pragma once

#include "kernels/conv2d/strip.h"
#include "kernels/jit_tile.h"

namespace sparsecore {
namespace {

template <class S>
struct Conv2dJitF32 {
  static bool supports(const Conv2dJitArgs& args) {
    return args.groups == 1 && args.weight.kernel_h == args.kernel_h && args.weight.kernel_w == args.kernel_w;
  }

  // The strip of a tile, all channels: it shares second-level cache with code and values that stream through.
  static constexpr int64_t kStripBytes = 768 * 1024;

  static Conv2dPlan plan_of(const Conv2dJitArgs& args) {
    Conv2dPlan plan = make_grid<S>(args, false);
    const int64_t cached = kStripBytes / int64_t(sizeof(float)) / larger(args.channels * plan.planes(), 1) - plan.halo;
    const int64_t parts = parts_of_image(args.threads, args.batch);
    const int64_t T = jit_tile_vectors(divide_up(plan.positions, JitView::kLanes), cached / JitView::kLanes, parts);
    cut_grid<S>(plan, T * JitView::kLanes / S::kLanes);
    return plan;
  }

  static int64_t num_tiles(const Conv2dJitArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // From one channel of a strip to the next: an odd number of cache lines, so that they do not meet in the same sets.
  static int64_t channel_floats(const Conv2dPlan& plan) {
    return (plan.channel_floats() / JitView::kLanes | 1) * JitView::kLanes;
  }

  // [ sums | strip | pieces | gaps ]
  static int64_t scratch_bytes(const Conv2dJitArgs& args) {
    const Conv2dPlan plan = plan_of(args);
    const int64_t floats = jit_sums_floats(args.weight) + args.channels * channel_floats(plan);
    return floats * int64_t(sizeof(float)) + (2 * plan.max_pieces() + 1) * int64_t(sizeof(Piece));
  }

  static void run(const Conv2dJitArgs& args, Range blocks, Range tiles, void* memory) {
    const JitView& weight = args.weight;
    const Conv2dPlan plan = plan_of(args);
    const int64_t W = plan.vectors * S::kLanes, channel = channel_floats(plan);
    const int64_t panel_channels = weight.panel_cols / (args.kernel_h * args.kernel_w);
    float* sums = static_cast<float*>(memory);
    float* strip = sums + jit_sums_floats(weight);
    Piece* pieces = reinterpret_cast<Piece*>(strip + args.channels * channel);
    Piece* gaps = pieces + plan.max_pieces();
    JitTaps taps;
    taps.channel = channel * int64_t(sizeof(float));
    for (int64_t kw = 0; kw < args.kernel_w; ++kw) {
      taps.columns[kw] = column_offset(args, plan, kw) * int64_t(sizeof(float));
    }
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan), begin = t % strips_per_image<S>(plan) * W;
      const StripOutput output{image, begin, smaller(W, plan.positions - begin)};
      const int64_t num_pieces = fill_pieces(args, plan, begin, pieces);
      const int64_t num_gaps = fill_gaps(plan, pieces, num_pieces, gaps);
      for (int64_t c = 0; c < args.channels; ++c) {
        for (int64_t i = 0; i < num_gaps; ++i) fill_zero(strip + c * channel + gaps[i].to, gaps[i].length);
        pack_strip<S>(args, plan, image, {c, c + 1}, pieces, num_pieces, strip + c * channel);
      }
      run_jit_tile(
          weight, blocks, divide_up(output.count, JitView::kLanes), sums,
          [&](int64_t v, int64_t panel) {
            const float* first = strip + panel * panel_channels * channel + v * JitView::kLanes;
            for (int64_t kh = 0; kh < args.kernel_h; ++kh) {
              taps.rows[kh] = reinterpret_cast<const uint8_t*>(first + row_offset(args, plan, kh));
            }
            return &taps;
          },
          [&](Range n, int64_t v) {
            const int64_t position = begin + v * JitView::kLanes;
            const int64_t offset = position / plan.pitch * args.out_width + position % plan.pitch;
            fetch_jit_outputs(args, n, output_offset(args, image, 0) + offset, args.out_height * args.out_width);
          },
          [](Range, int64_t, float* to) { return jit_sums_as_outputs(to); },
          [&](Range n, const float* rows) {
            finish_jit_rows<S>(args, n, rows, [&](int64_t row, auto function) SPARSECORE_LAMBDA_INLINE {
              output.for_each_part(args, plan.pitch, row, function);
            });
          });
    }
  }

  // What no piece covers, as pieces from nowhere; returns how many.
  static int64_t fill_gaps(const Conv2dPlan& plan, const Piece* pieces, int64_t num_pieces, Piece* gaps) {
    int64_t count = 0;
    int32_t covered = 0;
    const auto add_until = [&](int32_t end) {
      if (end > covered) gaps[count++] = {-1, covered, end - covered};
    };
    for (int64_t i = 0; i < num_pieces; ++i) {
      add_until(pieces[i].to);
      covered = pieces[i].to + pieces[i].length;
    }
    add_until(static_cast<int32_t>(plan.channel_floats()));
    return count;
  }
};

}  // namespace
}  // namespace sparsecore
