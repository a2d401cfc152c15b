// conv2d, generated code: algorithm text. Strips of the input (strip.h) are copied out tap by tap, so that the code
// reads the same columns as in a product with x[K, P].
#pragma once

#include "kernels/conv2d/strip.h"
#include "kernels/jit_tile.h"

namespace sparsecore {
namespace {

template <class S>
struct Conv2dJitF32 {
  static bool supports(const Conv2dJitArgs& args) { return args.groups == 1; }

  static Conv2dPlan plan_of(const Conv2dJitArgs& args) {
    Conv2dPlan plan = make_grid<S>(args, false);
    const int64_t T = jit_tile_vectors(args.weight, divide_up(plan.positions, JitView::kLanes));
    cut_grid<S>(plan, T * JitView::kLanes / S::kLanes);
    return plan;
  }
  static int64_t tile_vectors(const Conv2dJitArgs& args, const Conv2dPlan& plan) {
    return plan.vectors * S::kLanes / JitView::kLanes;
  }

  static int64_t num_tiles(const Conv2dJitArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // [ tile, sums | strips of some channels | pieces | offsets ]
  static int64_t taps(const Conv2dJitArgs& args) { return args.kernel_h * args.kernel_w; }
  // Strips that stay in first-level cache until they are copied out.
  static int64_t strip_channels(const Conv2dPlan& plan) {
    return larger(kStripBytes / (plan.channel_floats() * int64_t(sizeof(float))), 1);
  }
  static constexpr int64_t kStripBytes = 16 * 1024;
  static int64_t scratch_bytes(const Conv2dJitArgs& args) {
    const Conv2dPlan plan = plan_of(args);
    const int64_t floats =
        JitScratch::floats(args.weight, tile_vectors(args, plan)) + strip_channels(plan) * plan.channel_floats();
    return floats * int64_t(sizeof(float)) + plan.max_pieces() * int64_t(sizeof(Piece)) +
           strip_channels(plan) * taps(args) * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dJitArgs& args, Range blocks, Range tiles, void* memory) {
    const JitView& weight = args.weight;
    const Conv2dPlan plan = plan_of(args);
    const int64_t T = tile_vectors(args, plan), W = T * JitView::kLanes;
    const JitScratch scratch(weight, T, memory);
    float* strip = static_cast<float*>(memory) + JitScratch::floats(weight, T);
    Piece* pieces = reinterpret_cast<Piece*>(strip + strip_channels(plan) * plan.channel_floats());
    int32_t* offsets = reinterpret_cast<int32_t*>(pieces + plan.max_pieces());
    fill_offsets(args, plan, strip_channels(plan), offsets);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan), begin = t % strips_per_image<S>(plan) * W;
      const StripOutput output{image, begin, smaller(W, plan.positions - begin)};
      const int64_t vectors = divide_up(output.count, JitView::kLanes);
      const int64_t num_pieces = fill_pieces(args, plan, begin, pieces);
      pack(args, plan, image, vectors, {pieces, num_pieces}, offsets, strip, scratch.tile);
      run_jit_tile(
          weight, blocks, vectors, scratch,
          [&](Range n, int64_t v) {
            const int64_t position = begin + v * JitView::kLanes;
            const int64_t offset = position / plan.pitch * args.out_width + position % plan.pitch;
            fetch_jit_outputs(args, n, output_offset(args, image, 0) + offset, args.out_height * args.out_width);
          },
          [&](Range n, const float* sums) {
            finish_jit_rows<S>(args, n, sums, [&](int64_t row, auto function) SPARSECORE_LAMBDA_INLINE {
              output.for_each_part(args, plan.pitch, row, function);
            });
          });
    }
  }

  struct Pieces {
    const Piece* first;
    int64_t count;
  };
  static void pack(const Conv2dJitArgs& args, const Conv2dPlan& plan, int64_t image, int64_t vectors,
                   const Pieces& pieces, const int32_t* offsets, float* strip, float* tile) {
    constexpr int64_t L = JitView::kLanes;
    const int64_t vector = jit_vector_floats(args.weight);
    const int64_t step = strip_channels(plan);
    fill_zero(strip, step * plan.channel_floats());  // what no piece covers stays zero
    for (int64_t c = 0; c < args.channels; c += step) {
      const Range channels{c, smaller(c + step, args.channels)};
      pack_strip<S>(args, plan, image, channels, pieces.first, pieces.count, strip);
      const int64_t columns = channels.size() * taps(args);
      for (int64_t v = 0; v < vectors; ++v) {
        const float* from = strip + v * L;
        float* to = tile + v * vector + c * taps(args) * L;
        for (int64_t k = 0; k < columns; ++k, to += L) {
          SPARSECORE_UNROLL
          for (int64_t i = 0; i < L; i += S::kLanes) S::store(to + i, S::load(from + offsets[k] + i));
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparsecore
