// conv2d, panel format float32: algorithm text. A panel is a number of whole channels, packed as strips with a plane
// for every kw (strip.h), so that nearly all loads are aligned and a panel of 3 x 3 taps takes the memory of 3. Tried
// before: reading all taps from one plane (Zen 4, 256 channels at 14 x 14, 90% zeros: 32% of FMA peak), and copying
// out every tap (45%).
#pragma once

#include "kernels/conv2d/strip.h"
#include "kernels/panel.h"

namespace sparsecore {
namespace {

template <class S>
struct Conv2dPanelF32 {
  static int64_t taps(const Conv2dPanelArgs& args) { return args.kernel_h * args.kernel_w; }
  static int64_t panel_channels(const Conv2dPanelArgs& args) { return args.weight.panel_cols / taps(args); }

  static bool supports(const Conv2dPanelArgs& args) {
    return args.groups == 1 && args.weight.panel_cols % taps(args) == 0;
  }

  // As many vectors as leave the strips of a panel in first-level cache.
  static Conv2dPlan plan_of(const Conv2dPanelArgs& args) {
    Conv2dPlan plan = make_grid<S>(args, true);
    const int64_t plane_bytes = kPanelBytes / (panel_channels(args) * plan.planes());
    const int64_t limit = (plane_bytes / int64_t(sizeof(float)) - plan.halo) / S::kLanes;
    const int64_t vectors = divide_up(plan.positions, S::kLanes);
    cut_grid<S>(plan, balanced_vectors(vectors, smaller(larger(limit, kMinVectors), kMaxPanelVectors<S>)));
    return plan;
  }
  // Fewer would read too many indices and values per multiply-add, and too much halo.
  static constexpr int64_t kMinVectors = S::kLanes == 1 ? 1 : 32 / S::kLanes;

  static int64_t num_tiles(const Conv2dPanelArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // [ strips of one panel's channels | sums of one chunk | pieces | offsets ]
  static int64_t strip_floats(const Conv2dPanelArgs& args, const Conv2dPlan& plan) {
    return panel_channels(args) * plan.channel_floats();
  }
  static int64_t sums_floats(const Conv2dPanelArgs& args, const Conv2dPlan& plan) {
    return partial_floats(args.weight, plan.vectors * S::kLanes);
  }
  static int64_t scratch_bytes(const Conv2dPanelArgs& args) {
    const Conv2dPlan plan = plan_of(args);
    return (strip_floats(args, plan) + sums_floats(args, plan)) * int64_t(sizeof(float)) +
           plan.max_pieces() * int64_t(sizeof(Piece)) + args.weight.panel_cols * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dPanelArgs& args, Range blocks, Range tiles, void* scratch) {
    const Conv2dPlan plan = plan_of(args);
    float* strip = static_cast<float*>(scratch);
    float* partial = strip + strip_floats(args, plan);
    Piece* pieces = reinterpret_cast<Piece*>(partial + sums_floats(args, plan));
    int32_t* offsets = reinterpret_cast<int32_t*>(pieces + plan.max_pieces());
    fill_offsets(args, plan, panel_channels(args), offsets);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image<S>(plan);
      const int64_t begin = t % strips_per_image<S>(plan) * plan.vectors * S::kLanes;
      const StripOutput output{image, begin, smaller(plan.vectors * S::kLanes, plan.positions - begin)};
      const int64_t num_pieces = fill_pieces(args, plan, begin, pieces);
      fill_zero(strip, strip_floats(args, plan));
      with_vectors<kMaxPanelVectors<S>>(static_cast<int>(divide_up(output.count, S::kLanes)), [&](auto count) {
        run_strip<decltype(count)::value>(args, plan, blocks, output, pieces, num_pieces, strip, partial, offsets);
      });
    }
  }

  template <int V>
  static void run_strip(const Conv2dPanelArgs& args, const Conv2dPlan& plan, Range blocks, const StripOutput& output,
                        const Piece* pieces, int64_t num_pieces, float* strip, float* partial, const int32_t* offsets) {
    constexpr int64_t W = V * S::kLanes;
    const PanelView<float>& weight = args.weight;
    float* direct = direct_output(args, plan, output, W);
    // As direct as the output, whose strides it has.
    const float* residual = direct != nullptr && args.residual != nullptr
                                ? static_cast<const float*>(args.residual) + (direct - static_cast<float*>(args.y))
                                : nullptr;
    const int64_t row_floats = args.out_height * args.out_width;
    const int64_t step = chunk_blocks(weight, W);
    for (int64_t block = blocks.begin; block < blocks.end; block += step) {
      const Range chunk{block, smaller(block + step, blocks.end)};
      const Range rows = rows_of(weight, chunk);
      Start start = Start::kZero;
      if (residual != nullptr) {
        start = Start::kResidual;
      } else if (args.residual != nullptr) {
        start = Start::kPartial;
        load_residual<S>(args, plan, output, rows, W, partial);
      }
      run_chunk<S, V>(
          weight, args.epilogue, start, chunk, strip, partial,
          [&](int64_t panel) {
            const int64_t c = panel * panel_channels(args);
            const Range channels{c, smaller(c + panel_channels(args), args.channels)};
            pack_strip<S>(args, plan, output.image, channels, pieces, num_pieces, strip);
          },
          [=](int64_t column) SPARSECORE_LAMBDA_INLINE { return int64_t(offsets[column]); },
          [=](int64_t n) SPARSECORE_LAMBDA_INLINE { return residual + n * row_floats; },
          [=](int64_t n, float* sums)
              SPARSECORE_LAMBDA_INLINE { return direct != nullptr ? direct + n * row_floats : sums; },
          [&](Range n, const float* sums) {
            if (direct == nullptr) store_strip<S>(args, plan, output, n, W, sums);
          });
    }
  }
};

}  // namespace
}  // namespace sparsecore
