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

// Columns [begin, begin + width) of the activations, in a tile of W.
struct TileColumns {
  int64_t begin;
  int64_t width;
  int64_t W;
};

// Pieces of the columns that lie in one image: function(image, first column in it, offset in the tile, length).
template <class Args, class Function>
SPARSECORE_INLINE void for_each_image(const Args& args, const TileColumns& columns, Function function) {
  for (int64_t done = 0; done < columns.width;) {
    const int64_t image = (columns.begin + done) / args.columns;
    const int64_t column = (columns.begin + done) % args.columns;
    const int64_t length = smaller(args.columns - column, columns.width - done);
    function(image, column, done, length);
    done += length;
  }
}

// Columns k of the weight for those of the activations, zeros up to W: tile[k.size()][W].
template <class S, class Args>
void pack_tile(const Args& args, const TileColumns& columns, Range k, float* tile) {
  const int64_t W = columns.W;
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    const T* x = static_cast<const T*>(args.x);
    if (args.layout == Layout::kRows) {
      transpose_block<S>(x + columns.begin * args.ldx + k.begin, args.ldx, columns.width, k.size(), tile, W);
    } else {
      for_each_image(args, columns, [&](int64_t image, int64_t column, int64_t at, int64_t length) {
        const T* from = x + image * args.x_batch_stride + k.begin * args.ldx + column;
        for (int64_t i = 0; i < k.size(); ++i) copy_numbers<S>(from + i * args.ldx, tile + i * W + at, length);
      });
    }
  });
  if (columns.width < W) {
    for (int64_t i = 0; i < k.size(); ++i) fill_zero(tile + i * W + columns.width, W - columns.width);
  }
}

// Rows n of y for those columns, from and to rows[n.size()][W].
template <class S, class Args>
void store_rows(const Args& args, const TileColumns& columns, Range n, const float* rows) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    T* y = static_cast<T*>(args.y);
    if (args.layout == Layout::kRows) {
      transpose_block<S>(rows, columns.W, n.size(), columns.width, y + columns.begin * args.ldy + n.begin, args.ldy);
    } else {
      for_each_image(args, columns, [&](int64_t image, int64_t column, int64_t at, int64_t length) {
        T* to = y + image * args.y_batch_stride + n.begin * args.ldy + column;
        for (int64_t i = 0; i < n.size(); ++i) copy_numbers<S>(rows + i * columns.W + at, to + i * args.ldy, length);
      });
    }
  });
}
template <class S, class Args>
void load_residual(const Args& args, const TileColumns& columns, Range n, float* rows) {
  Args residual = args;
  residual.x = args.residual;
  residual.ldx = args.ldy;
  residual.x_batch_stride = args.y_batch_stride;
  pack_tile<S>(residual, columns, n, rows);
}

// Where row 0 of the tile lies in y if its columns are consecutive there: columns layout, float32, one image; else
// null.
template <class Args>
SPARSECORE_INLINE float* direct_output(const Args& args, const TileColumns& columns) {
  const bool is_one_image = columns.begin / args.columns == (columns.begin + columns.width - 1) / args.columns;
  if (args.layout == Layout::kRows || args.dtype != Dtype::kFloat32 || !is_one_image || columns.width != columns.W) {
    return nullptr;
  }
  float* y = static_cast<float*>(args.y);
  return y + (columns.begin / args.columns) * args.y_batch_stride + columns.begin % args.columns;
}

}  // namespace
}  // namespace sparsecore
