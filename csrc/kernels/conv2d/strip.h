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
// A vector at an odd shift crosses a cache line, and loading it takes almost twice as long. So there is a second
// scheme, with one plane for every kw, in which the shift by kw is already done; what is left is a shift by whole
// rows, and that is aligned if the pitch is. It costs KW times the memory.
//
//   kw 0: 0 a b .    kw 1: a b c .    kw 2: b c 0 .
//         0 d e .          d e f .          e f 0 .
//
// With stride s, the rows (and in the first scheme the columns) of x are cut into their s phases, each a plane.
// A strip of consecutive grid positions, plus the halo that the taps reach, is packed for every channel and plane.
#pragma once

#include "kernels/conv2d/phases.h"
#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// How the output grid is cut; a function of the shape alone, so that results do not depend on the threads.
struct Conv2dPlan {
  bool plane_per_kw;
  int64_t pitch;         // grid columns
  int64_t halo;          // furthest tap
  int64_t planes_h;      // used phases of rows
  int64_t planes_w;      // KW, or used phases of columns
  int64_t positions;     // of one image
  int64_t vectors;       // of a strip's output positions
  int64_t plane_floats;  // the positions and the halo

  int64_t planes() const { return planes_h * planes_w; }
  int64_t channel_floats() const { return planes() * plane_floats; }
  int64_t max_pieces() const { return planes() * ((plane_floats - 1) / pitch + 2); }
};

// Floats in a row of the grid if there is a plane per kw. Aligned rows have up to Simd::kAlignment - 1 columns that
// nobody needs; rows of exactly the output's width have none, but load unaligned for every kh but the first.
template <class S>
SPARSECORE_INLINE int64_t row_pitch(int64_t out_width, int64_t kernel_h) {
  const int64_t aligned = divide_up(out_width, S::kAlignment) * S::kAlignment;
  // An unaligned load takes 1.6 times an aligned one (Zen 4).
  return 10 * kernel_h * aligned <= (16 * kernel_h - 6) * out_width ? aligned : out_width;
}

template <class S, class Args>
SPARSECORE_INLINE Conv2dPlan make_grid(const Args& args, bool plane_per_kw) {
  Conv2dPlan plan{};
  plan.plane_per_kw = plane_per_kw;
  const int64_t reach_h = (args.kernel_h - 1) * args.dilation_h / args.stride_h;
  const int64_t reach_w = plane_per_kw ? 0 : (args.kernel_w - 1) * args.dilation_w / args.stride_w;
  if (plane_per_kw) {
    plan.pitch = row_pitch<S>(args.out_width, args.kernel_h);
    plan.planes_w = args.kernel_w;
  } else {
    plan.pitch = args.stride_w == 1 ? larger(args.out_width, args.width + args.padding_w) : args.out_width + reach_w;
    plan.planes_w = phases_before(args.stride_w, args.stride_w, args.dilation_w, args.kernel_w);
  }
  plan.planes_h = phases_before(args.stride_h, args.stride_h, args.dilation_h, args.kernel_h);
  plan.halo = reach_h * plan.pitch + reach_w;
  plan.positions = (args.out_height - 1) * plan.pitch + args.out_width;
  return plan;
}

// Strips of `vectors` vectors of positions; planes start at a cache line.
template <class S>
SPARSECORE_INLINE void cut_grid(Conv2dPlan& plan, int64_t vectors) {
  plan.vectors = vectors;
  plan.plane_floats = divide_up(vectors * S::kLanes + plan.halo, 16) * 16;
}

template <class S>
SPARSECORE_INLINE int64_t strips_per_image(const Conv2dPlan& plan) {
  return divide_up(plan.positions, plan.vectors * S::kLanes);
}

// Where tap (kh, kw) reads in a channel of a packed strip: row_offset + column_offset.
template <class Args>
SPARSECORE_INLINE int64_t row_offset(const Args& args, const Conv2dPlan& plan, int64_t kh) {
  const int64_t h = kh * args.dilation_h;
  const int64_t plane = phases_before(h % args.stride_h, args.stride_h, args.dilation_h, args.kernel_h);
  return plane * plan.planes_w * plan.plane_floats + h / args.stride_h * plan.pitch;
}
template <class Args>
SPARSECORE_INLINE int64_t column_offset(const Args& args, const Conv2dPlan& plan, int64_t kw) {
  if (plan.plane_per_kw) return kw * plan.plane_floats;
  const int64_t w = kw * args.dilation_w;
  const int64_t plane = phases_before(w % args.stride_w, args.stride_w, args.dilation_w, args.kernel_w);
  return plane * plan.plane_floats + w / args.stride_w;
}

// Column (channel, kh, kw) -> offset in a packed strip, for the first `channels` of it.
template <class Args>
SPARSECORE_INLINE void fill_offsets(const Args& args, const Conv2dPlan& plan, int64_t channels, int32_t* offsets) {
  for (int64_t kh = 0; kh < args.kernel_h; ++kh) {
    const int64_t row = row_offset(args, plan, kh);
    for (int64_t kw = 0; kw < args.kernel_w; ++kw) {
      const int64_t first = row + column_offset(args, plan, kw);
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t column = (c * args.kernel_h + kh) * args.kernel_w + kw;
        offsets[column] = static_cast<int32_t>(c * plan.channel_floats() + first);
      }
    }
  }
}

// A part of one row of x that a strip needs: strip[to + i] = x[from + i * stride_w] for i < length. The same for all
// channels; what no piece covers is padding and stays zero.
struct Piece {
  int64_t from;
  int32_t to;
  int32_t length;
};

// Pieces of the strip that starts at grid position `begin`; returns how many.
template <class Args>
int64_t fill_pieces(const Args& args, const Conv2dPlan& plan, int64_t begin, Piece* pieces) {
  int64_t count = 0, plane = 0;
  for (int64_t phase_h = 0; phase_h < args.stride_h; ++phase_h) {
    if (!phase_is_used(phase_h, args.stride_h, args.dilation_h, args.kernel_h)) continue;
    const int64_t shifts = plan.plane_per_kw ? args.kernel_w : args.stride_w;
    for (int64_t i = 0; i < shifts; ++i) {
      if (!plan.plane_per_kw && !phase_is_used(i, args.stride_w, args.dilation_w, args.kernel_w)) continue;
      const int64_t shift_w = (plan.plane_per_kw ? i * args.dilation_w : i) - args.padding_w;
      // Columns of the grid whose pixels lie in x.
      const int64_t left = shift_w < 0 ? divide_up(-shift_w, args.stride_w) : 0;
      const int64_t right = shift_w < args.width ? divide_up(args.width - shift_w, args.stride_w) : 0;
      for (int64_t done = 0; done < plan.plane_floats;) {
        const int64_t row = (begin + done) / plan.pitch, column = (begin + done) % plan.pitch;
        const int64_t length = smaller(plan.pitch - column, plan.plane_floats - done);
        const int64_t ih = row * args.stride_h + phase_h - args.padding_h;
        const int64_t first = larger(column, left);
        const int64_t last = smaller(column + length, plan.plane_per_kw ? smaller(right, args.out_width) : right);
        if (ih >= 0 && ih < args.height && first < last) {
          pieces[count++] = {ih * args.width + first * args.stride_w + shift_w,
                             static_cast<int32_t>(plane * plan.plane_floats + done + first - column),
                             static_cast<int32_t>(last - first)};
        }
        done += length;
      }
      ++plane;
    }
  }
  return count;
}

template <class S, class Args>
void pack_strip(const Args& args, const Conv2dPlan& plan, int64_t image, Range channels, const Piece* pieces,
                int64_t num_pieces, float* strip) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    for (int64_t c = channels.begin; c < channels.end; ++c, strip += plan.channel_floats()) {
      const T* plane = static_cast<const T*>(args.x) + (image * args.channels + c) * args.height * args.width;
      for (int64_t i = 0; i < num_pieces; ++i) {
        copy_strided<S>(plane + pieces[i].from, args.stride_w, strip + pieces[i].to, pieces[i].length);
      }
    }
  });
}

template <class Args>
SPARSECORE_INLINE bool is_empty(const Args& args) {
  return args.batch == 0 || args.out_height == 0 || args.out_width == 0;
}

// Where row n of an image begins in y and in the residual.
template <class Args>
SPARSECORE_INLINE int64_t output_offset(const Args& args, int64_t image, int64_t n) {
  return (image * args.weight.rows + n) * args.out_height * args.out_width;
}

// Grid positions [begin, begin + count) of rows n, without those right of the last output column.
struct StripOutput {
  int64_t image;
  int64_t begin;
  int64_t count;

  // function(offset of a part of row n in y, offset in the strip's row, length)
  template <class Args, class Function>
  SPARSECORE_INLINE void for_each_part(const Args& args, int64_t pitch, int64_t n, Function function) const {
    for (int64_t done = 0; done < count;) {
      const int64_t oh = (begin + done) / pitch, ow = (begin + done) % pitch;
      const int64_t length = smaller(pitch - ow, count - done);
      const int64_t kept = smaller(args.out_width - ow, length);
      if (kept > 0) function(output_offset(args, image, n) + oh * args.out_width + ow, done, kept);
      done += length;
    }
  }
};

// Rows n of y from rows[n.size()][W], and of the residual to it.
template <class S, class Args>
void store_strip(const Args& args, const Conv2dPlan& plan, const StripOutput& output, Range n, int64_t W,
                 const float* rows) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    for (int64_t i = n.begin; i < n.end; ++i, rows += W) {
      output.for_each_part(args, plan.pitch, i, [&](int64_t to, int64_t at, int64_t length) SPARSECORE_LAMBDA_INLINE {
        copy_numbers<S>(rows + at, static_cast<T*>(args.y) + to, length);
      });
    }
  });
}
template <class S, class Args>
void load_residual(const Args& args, const Conv2dPlan& plan, const StripOutput& output, Range n, int64_t W,
                   float* rows) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    for (int64_t i = n.begin; i < n.end; ++i, rows += W) {
      output.for_each_part(args, plan.pitch, i, [&](int64_t from, int64_t at, int64_t length) SPARSECORE_LAMBDA_INLINE {
        copy_numbers<S>(static_cast<const T*>(args.residual) + from, rows + at, length);
      });
    }
  });
}

// Where the strip of row 0 lies in y if it is consecutive there and float32; else null.
template <class Args>
SPARSECORE_INLINE float* direct_output(const Args& args, const Conv2dPlan& plan, const StripOutput& output, int64_t W) {
  if (plan.pitch != args.out_width || output.count != W || args.dtype != Dtype::kFloat32) return nullptr;
  return static_cast<float*>(args.y) + output_offset(args, output.image, 0) + output.begin;
}

}  // namespace
}  // namespace sparsecore
