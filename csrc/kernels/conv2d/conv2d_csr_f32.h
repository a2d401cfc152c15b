// conv2d, CSR float32, direct: algorithm text. No im2col: input planes are laid out so that every tap of the filter
// is the same row of numbers at another offset, and the inner loop of spmm runs on them with an offset table.
//
// Output pixels are numbered on a grid of `pitch` columns: pixel (oh, ow) is oh * pitch + ow. For stride 1 and an
// input plane stored with the same pitch, tap (kh, kw) of all pixels is that plane shifted by kh * pitch + kw:
//
//   0 0 0 0 |        x: 3x3, padding 1, pitch 4: the zero left of a row is also the one right of the row before
//   0 a b c |        out[p] = sum over taps of w[kh, kw] * plane[p + 4 kh + kw]
//   0 d e f |        p = 3 (right of the last output column) is computed and dropped
//   0 g h i |
//   0 0 0 0 |
//
// With stride s the plane is cut into its s * s phases (rows and columns modulo s); each tap lies in one phase.
// A strip of consecutive grid positions, plus the halo that the taps reach, is packed per channel and phase.
#pragma once

#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Strips of several steps save halo but were 20-40% slower on Zen 4 at 256 KB: the next step finds its lines gone.
constexpr int64_t kStripBytes = 64 * 1024;

SPARSECORE_INLINE bool phase_is_used(int64_t phase, int64_t stride, int64_t dilation, int64_t taps) {
  for (int64_t k = 0; k < taps; ++k) {
    if (k * dilation % stride == phase) return true;
  }
  return false;
}

SPARSECORE_INLINE int64_t num_phases(int64_t stride, int64_t dilation, int64_t taps) {
  int64_t count = 0;
  for (int64_t phase = 0; phase < stride; ++phase) count += phase_is_used(phase, stride, dilation, taps);
  return count;
}

// How the output grid is cut; a function of the shape alone, so that results do not depend on the threads.
struct Conv2dPlan {
  int64_t pitch;        // grid columns
  int64_t halo;         // furthest tap
  int64_t phases;       // used ones of stride_h * stride_w
  int64_t vectors;      // of one step of the inner loop
  int64_t strip;        // output positions packed at once, a multiple of vectors * lanes
  int64_t positions;    // of one image
  int64_t strip_floats; // per channel and phase
};

template <class S>
SPARSECORE_INLINE Conv2dPlan make_plan(const Conv2dArgs& args) {
  const int64_t reach_h = (args.kernel_h - 1) * args.dilation_h / args.stride_h;
  const int64_t reach_w = (args.kernel_w - 1) * args.dilation_w / args.stride_w;
  Conv2dPlan plan;
  plan.pitch = args.stride_w == 1 ? larger(args.out_width, args.width + args.padding_w) : args.out_width + reach_w;
  plan.halo = reach_h * plan.pitch + reach_w;
  plan.phases = num_phases(args.stride_h, args.dilation_h, args.kernel_h) *
                num_phases(args.stride_w, args.dilation_w, args.kernel_w);
  plan.positions = (args.out_height - 1) * plan.pitch + args.out_width;
  plan.vectors = balanced_vectors(divide_up(plan.positions, S::kLanes), kMaxVectors);
  const int64_t step = plan.vectors * S::kLanes;
  const int64_t floats = kStripBytes / int64_t(sizeof(float)) / larger(args.channels * plan.phases, 1) - plan.halo;
  plan.strip = step * larger(smaller(floats / step, divide_up(plan.positions, step)), 1);
  plan.strip_floats = plan.strip + plan.halo;
  return plan;
}

// Column k = (channel in group, kh, kw) of the weight -> offset in a packed strip of its group.
SPARSECORE_INLINE void fill_offsets(const Conv2dArgs& args, const Conv2dPlan& plan, int32_t* offsets) {
  const int64_t channels = args.channels / args.groups;
  const int64_t taps = args.kernel_h * args.kernel_w;
  int64_t slot = 0;
  for (int64_t phase_h = 0; phase_h < args.stride_h; ++phase_h) {
    for (int64_t phase_w = 0; phase_w < args.stride_w; ++phase_w) {
      bool is_used = false;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t h = tap / args.kernel_w * args.dilation_h, w = tap % args.kernel_w * args.dilation_w;
        if (h % args.stride_h != phase_h || w % args.stride_w != phase_w) continue;
        is_used = true;
        const int64_t shift = slot * plan.strip_floats + h / args.stride_h * plan.pitch + w / args.stride_w;
        for (int64_t c = 0; c < channels; ++c) {
          offsets[c * taps + tap] = static_cast<int32_t>(c * plan.phases * plan.strip_floats + shift);
        }
      }
      slot += is_used;
    }
  }
}

// Positions [begin, begin + count) of one phase of one input plane; zeros outside of it.
template <class S>
SPARSECORE_INLINE void pack_positions(const Conv2dArgs& args, int64_t pitch, const float* plane, int64_t phase_h,
                                      int64_t phase_w, int64_t begin, int64_t count, float* to) {
  for (int64_t done = 0; done < count;) {
    const int64_t row = (begin + done) / pitch, first = (begin + done) % pitch;
    const int64_t length = smaller(pitch - first, count - done);
    const int64_t ih = row * args.stride_h + phase_h - args.padding_h;
    const int64_t iw = first * args.stride_w + phase_w - args.padding_w;
    float* dst = to + done;
    done += length;
    if (ih < 0 || ih >= args.height) {
      fill_zero(dst, length);
      continue;
    }
    // dst[i] = x[ih, iw + i * stride_w] for left <= i < right.
    const int64_t left = smaller(iw < 0 ? divide_up(-iw, args.stride_w) : 0, length);
    const int64_t right = larger(smaller(iw < args.width ? divide_up(args.width - iw, args.stride_w) : 0, length), left);
    const float* src = plane + ih * args.width + iw;
    fill_zero(dst, left);
    if (args.stride_w == 1) {
      copy_floats<S>(src + left, dst + left, right - left);
    } else {
      for (int64_t i = left; i < right; ++i) dst[i] = src[i * args.stride_w];
    }
    fill_zero(dst + right, length - right);
  }
}

template <class S>
void pack_strip(const Conv2dArgs& args, const Conv2dPlan& plan, int64_t image, Range channels, int64_t begin,
                float* strip) {
  for (int64_t c = channels.begin; c < channels.end; ++c) {
    const float* plane = args.x + (image * args.channels + c) * args.height * args.width;
    for (int64_t phase_h = 0; phase_h < args.stride_h; ++phase_h) {
      if (!phase_is_used(phase_h, args.stride_h, args.dilation_h, args.kernel_h)) continue;
      for (int64_t phase_w = 0; phase_w < args.stride_w; ++phase_w) {
        if (!phase_is_used(phase_w, args.stride_w, args.dilation_w, args.kernel_w)) continue;
        pack_positions<S>(args, plan.pitch, plane, phase_h, phase_w, begin, plan.strip_floats, strip);
        strip += plan.strip_floats;
      }
    }
  }
}

// Drops the grid positions right of the last output column.
template <class S>
SPARSECORE_INLINE void store_positions(const Conv2dArgs& args, int64_t pitch, const float* out, int64_t begin,
                                       int64_t count, float* plane) {
  for (int64_t done = 0; done < count;) {
    const int64_t oh = (begin + done) / pitch, ow = (begin + done) % pitch;
    const int64_t length = smaller(pitch - ow, count - done);
    const int64_t kept = smaller(args.out_width - ow, length);
    if (kept > 0) copy_floats<S>(out + done, plane + oh * args.out_width + ow, kept);
    done += length;
  }
}

template <class S, int V>
void run_strip(const Conv2dArgs& args, const Conv2dPlan& plan, Range rows, int64_t image, int64_t begin,
               const float* strip, const int32_t* offsets, float* out) {
  constexpr int64_t W = V * S::kLanes;
  const int64_t rows_per_group = args.weight.rows / args.groups;
  const int64_t group_floats = args.channels / args.groups * plan.phases * plan.strip_floats;
  const int64_t first_group = rows.begin / rows_per_group;
  const int64_t end = smaller(begin + plan.strip, plan.positions);
  for (int64_t at = begin; at < end; at += W) {
    const int64_t count = smaller(W, end - at);
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      const float* tile = strip + (n / rows_per_group - first_group) * group_floats + (at - begin);
      typename S::F32 acc[V];
      multiply_row<S, V>(args.weight, n, tile, [=](int32_t k) { return int64_t(offsets[k]); }, acc);
      apply_epilogue<S, V>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
      float* plane = args.y + (image * args.weight.rows + n) * args.out_height * args.out_width;
      const bool is_direct = plan.pitch == args.out_width && count == W;
      float* to = is_direct ? plane + at : out;
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) S::store(to + j * S::kLanes, acc[j]);
      if (!is_direct) store_positions<S>(args, plan.pitch, out, at, count, plane);
    }
  }
}

template <class S>
struct Conv2dCsrF32 {
  static bool supports(const Conv2dArgs&) { return true; }

  static int64_t strips_per_image(const Conv2dPlan& plan) { return divide_up(plan.positions, plan.strip); }

  static int64_t num_tiles(const Conv2dArgs& args) {
    if (args.batch == 0 || args.out_height == 0 || args.out_width == 0) return 0;
    return args.batch * strips_per_image(make_plan<S>(args));
  }

  static int64_t strip_bytes(const Conv2dArgs& args, const Conv2dPlan& plan) {
    const int64_t floats = args.channels * plan.phases * plan.strip_floats;
    return divide_up(floats * int64_t(sizeof(float)), 64) * 64;
  }

  static int64_t scratch_bytes(const Conv2dArgs& args) {
    const Conv2dPlan plan = make_plan<S>(args);
    const int64_t out_bytes = kMaxVectors * S::kLanes * int64_t(sizeof(float));
    return strip_bytes(args, plan) + out_bytes + args.weight.cols * int64_t(sizeof(int32_t));
  }

  static void run(const Conv2dArgs& args, Range rows, Range tiles, void* scratch) {
    const Conv2dPlan plan = make_plan<S>(args);
    float* strip = static_cast<float*>(scratch);
    float* out = strip + strip_bytes(args, plan) / int64_t(sizeof(float));
    int32_t* offsets = reinterpret_cast<int32_t*>(out + kMaxVectors * S::kLanes);
    fill_offsets(args, plan, offsets);

    const int64_t rows_per_group = args.weight.rows / args.groups;
    const int64_t channels_per_group = args.channels / args.groups;
    const Range channels{rows.begin / rows_per_group * channels_per_group,
                         ((rows.end - 1) / rows_per_group + 1) * channels_per_group};
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / strips_per_image(plan);
      const int64_t begin = t % strips_per_image(plan) * plan.strip;
      pack_strip<S>(args, plan, image, channels, begin, strip);
      with_vectors(static_cast<int>(plan.vectors), [&](auto count) {
        run_strip<S, decltype(count)::value>(args, plan, rows, image, begin, strip, offsets, out);
      });
    }
  }
};

}  // namespace
}  // namespace sparsecore
