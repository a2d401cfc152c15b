// The input of a convolution as strips on which it is spmm, for all formats of the weight.
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
  int64_t pitch;         // grid columns
  int64_t halo;          // furthest tap
  int64_t phases;        // used ones of stride_h * stride_w
  int64_t positions;     // of one image
  int64_t vectors;       // of a strip's output positions
  int64_t strip_floats;  // per channel and phase: the positions and the halo
};

template <class S, class Args>
SPARSECORE_INLINE Conv2dPlan make_plan(const Args& args, int64_t max_vectors) {
  const int64_t reach_h = (args.kernel_h - 1) * args.dilation_h / args.stride_h;
  const int64_t reach_w = (args.kernel_w - 1) * args.dilation_w / args.stride_w;
  Conv2dPlan plan;
  plan.pitch = args.stride_w == 1 ? larger(args.out_width, args.width + args.padding_w) : args.out_width + reach_w;
  plan.halo = reach_h * plan.pitch + reach_w;
  plan.phases = num_phases(args.stride_h, args.dilation_h, args.kernel_h) *
                num_phases(args.stride_w, args.dilation_w, args.kernel_w);
  plan.positions = (args.out_height - 1) * plan.pitch + args.out_width;
  plan.vectors = balanced_vectors(divide_up(plan.positions, S::kLanes), max_vectors);
  plan.strip_floats = plan.vectors * S::kLanes + plan.halo;
  return plan;
}

template <class S>
SPARSECORE_INLINE int64_t strips_per_image(const Conv2dPlan& plan) {
  return divide_up(plan.positions, plan.vectors * S::kLanes);
}

// Column (channel, kh, kw) -> offset in a packed strip, for the first `channels` of it.
template <class Args>
SPARSECORE_INLINE void fill_offsets(const Args& args, const Conv2dPlan& plan, int64_t channels, int32_t* offsets) {
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
template <class S, class Args>
SPARSECORE_INLINE void pack_positions(const Args& args, int64_t pitch, const float* plane, int64_t phase_h,
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
    const int64_t right =
        larger(smaller(iw < args.width ? divide_up(args.width - iw, args.stride_w) : 0, length), left);
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

template <class S, class Args>
void pack_strip(const Args& args, const Conv2dPlan& plan, int64_t image, Range channels, int64_t begin, float* strip) {
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

template <class Args>
SPARSECORE_INLINE bool is_empty(const Args& args) {
  return args.batch == 0 || args.out_height == 0 || args.out_width == 0;
}

template <class Args>
SPARSECORE_INLINE float* output_plane(const Args& args, int64_t image, int64_t n) {
  return args.y + (image * args.weight.rows + n) * args.out_height * args.out_width;
}

// Drops the grid positions right of the last output column.
template <class S, class Args>
SPARSECORE_INLINE void store_positions(const Args& args, int64_t pitch, const float* out, int64_t begin, int64_t count,
                                       float* plane) {
  for (int64_t done = 0; done < count;) {
    const int64_t oh = (begin + done) / pitch, ow = (begin + done) % pitch;
    const int64_t length = smaller(pitch - ow, count - done);
    const int64_t kept = smaller(args.out_width - ow, length);
    if (kept > 0) copy_floats<S>(out + done, plane + oh * args.out_width + ow, kept);
    done += length;
  }
}

}  // namespace
}  // namespace sparsecore
