// Activations in and out of tiles, for all formats of the weight. Include after a wrapper that defines Simd.
#pragma once

#include "kernels/tile.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

template <class Args>
SPARSECORE_INLINE int64_t num_columns(const Args& args) {
  return args.batch * args.columns;
}

// Pieces of columns [begin, begin + width) that lie in one image: function(image, first column in it, offset in the
// tile, length).
template <class Args, class Function>
SPARSECORE_INLINE void for_each_image(const Args& args, int64_t begin, int64_t width, Function function) {
  for (int64_t done = 0; done < width;) {
    const int64_t image = (begin + done) / args.columns;
    const int64_t column = (begin + done) % args.columns;
    const int64_t length = smaller(args.columns - column, width - done);
    function(image, column, done, length);
    done += length;
  }
}

// Columns k of the weight for activation columns [begin, begin + width), zeros up to W: tile[k.size()][W].
template <class S, class Args>
void pack_tile(const Args& args, int64_t begin, int64_t width, Range k, int64_t W, float* tile) {
  if (args.layout == Layout::kRows) {
    transpose_block<S>(args.x + begin * args.ldx + k.begin, args.ldx, width, k.size(), tile, W);
  } else {
    for_each_image(args, begin, width, [&](int64_t image, int64_t column, int64_t at, int64_t length) {
      const float* x = args.x + image * args.x_batch_stride + k.begin * args.ldx + column;
      for (int64_t i = 0; i < k.size(); ++i) copy_floats<S>(x + i * args.ldx, tile + i * W + at, length);
    });
  }
  if (width < W) {
    for (int64_t i = 0; i < k.size(); ++i) fill_zero(tile + i * W + width, W - width);
  }
}

// One finished row of y in the columns layout, image by image.
template <class S, class Args>
SPARSECORE_INLINE void store_columns(const Args& args, int64_t n, int64_t begin, int64_t width, const float* out) {
  for_each_image(args, begin, width, [&](int64_t image, int64_t column, int64_t at, int64_t length) {
    copy_floats<S>(out + at, args.y + image * args.y_batch_stride + n * args.ldy + column, length);
  });
}

// Where row 0 of the tile lies in y if its columns are consecutive there: columns layout and one image; else null.
template <class Args>
SPARSECORE_INLINE float* direct_output(const Args& args, int64_t begin, int64_t width, int64_t W) {
  const bool is_one_image = begin / args.columns == (begin + width - 1) / args.columns;
  if (args.layout == Layout::kRows || !is_one_image || width != W) return nullptr;
  return args.y + (begin / args.columns) * args.y_batch_stride + begin % args.columns;
}

}  // namespace
}  // namespace sparsecore
