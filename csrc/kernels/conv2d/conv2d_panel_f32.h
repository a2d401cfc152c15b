// conv2d, panel format float32: algorithm text. A panel is a number of whole channels. Their strips are packed
// (strip.h), then every tap of them is copied out as a row of the tile, aligned: an im2col of one panel that never
// leaves the first-level cache. Reading the taps in place, as the CSR kernel does, saves the copy, but half to all of
// the vectors then cross a cache line: measured on Zen 4, 256 channels at 14 x 14, 90% zeros: 45% of FMA peak against
// 32%.
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

  static Conv2dPlan plan_of(const Conv2dPanelArgs& args) { return make_plan<S>(args, kMaxPanelVectors<S>); }

  static int64_t num_tiles(const Conv2dPanelArgs& args) {
    return is_empty(args) ? 0 : args.batch * strips_per_image<S>(plan_of(args));
  }

  // [ strips of one panel's channels | activations of one panel | sums of one chunk | offsets ]
  static int64_t strip_floats(const Conv2dPanelArgs& args, const Conv2dPlan& plan) {
    return divide_up(panel_channels(args) * plan.phases * plan.strip_floats, 16) * 16;
  }
  static int64_t tile_floats(const Conv2dPanelArgs& args, const Conv2dPlan& plan) {
    return args.weight.panel_cols * plan.vectors * S::kLanes;
  }
  static int64_t sums_floats(const Conv2dPanelArgs& args, const Conv2dPlan& plan) {
    return partial_floats(args.weight, plan.vectors * S::kLanes);
  }
  static int64_t scratch_bytes(const Conv2dPanelArgs& args) {
    const Conv2dPlan plan = plan_of(args);
    return (strip_floats(args, plan) + tile_floats(args, plan) + sums_floats(args, plan)) * int64_t(sizeof(float)) +
           args.weight.panel_cols * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dPanelArgs& args, Range blocks, Range tiles, void* scratch) {
    const Conv2dPlan plan = plan_of(args);
    float* strip = static_cast<float*>(scratch);
    float* tile = strip + strip_floats(args, plan);
    float* partial = tile + tile_floats(args, plan);
    int32_t* offsets = reinterpret_cast<int32_t*>(partial + sums_floats(args, plan));
    fill_offsets(args, plan, panel_channels(args), offsets);
    with_vectors<kMaxPanelVectors<S>>(static_cast<int>(plan.vectors), [&](auto count) {
      for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        run_strip<decltype(count)::value>(args, plan, blocks, t, strip, tile, partial, offsets);
      }
    });
  }

  template <int V>
  static void run_strip(const Conv2dPanelArgs& args, const Conv2dPlan& plan, Range blocks, int64_t t, float* strip,
                        float* tile, float* partial, const int32_t* offsets) {
    constexpr int64_t W = V * S::kLanes;
    const PanelView<float>& weight = args.weight;
    const int64_t image = t / strips_per_image<S>(plan), begin = t % strips_per_image<S>(plan) * W;
    const int64_t count = smaller(W, plan.positions - begin);
    const bool is_direct = plan.pitch == args.out_width && count == W;
    const int64_t step = chunk_blocks(weight, W);
    for (int64_t block = blocks.begin; block < blocks.end; block += step) {
      const Range chunk{block, smaller(block + step, blocks.end)};
      run_chunk<S, V>(
          weight, args.epilogue, chunk, tile, partial,
          [&](int64_t panel) {
            const int64_t c = panel * panel_channels(args);
            const Range channels{c, smaller(c + panel_channels(args), args.channels)};
            pack_strip<S>(args, plan, image, channels, begin, strip);
            for (int64_t k = 0; k < channels.size() * taps(args); ++k) {
              SPARSECORE_UNROLL
              for (int j = 0; j < V; ++j) {
                S::store(tile + k * W + j * S::kLanes, S::load(strip + offsets[k] + j * S::kLanes));
              }
            }
          },
          [](int64_t column) SPARSECORE_LAMBDA_INLINE { return column * W; },
          [&](int64_t n, float* sums)
              SPARSECORE_LAMBDA_INLINE { return is_direct ? output_plane(args, image, n) + begin : sums; });
      if (is_direct) continue;
      const int64_t n = chunk.begin * weight.block_rows;
      const int64_t n_end = smaller(chunk.end * weight.block_rows, weight.rows);
      for (int64_t i = n; i < n_end; ++i) {
        store_positions<S>(args, plan.pitch, partial + (i - n) * W, begin, count, output_plane(args, image, i));
      }
    }
  }
};

}  // namespace
}  // namespace sparsecore
