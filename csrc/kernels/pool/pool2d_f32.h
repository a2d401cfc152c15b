// Pooling in two passes: over the rows of a window, vectors of neighbouring columns at once, and then over its columns.
// Algorithm text; include after a wrapper that defines Simd.
//
//   x          . . . . . .    the rows of the windows of one row of y ...
//              . . . . . .
//   combined   o a b c d e f o    ... as one row, with room for the padding
//   y            A   B   C        A = o a b, B = b c d: shifted loads, for stride 2 the even lanes of two vectors
//
// Several rows of y at a time: a load of what was stored in other pieces just before waits until it is in the cache.
#pragma once

#include "kernels/parts.h"
#include "simd/target.h"
#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Outputs of a tile: large planes are cut, so that few channels keep many threads busy.
constexpr int64_t kTileOutputs = 8192;

// Bytes of combined rows: they stay in the first-level cache, beside the rows of x that they are made from.
constexpr int64_t kCombinedBytes = 8192;

// Vectors of columns that the rows of a window are combined for at a time.
constexpr int kVectors = 4;

// How two numbers of a window are combined, and what changes none.
template <class S>
struct MaxOf {
  static constexpr float kNeutral = -__builtin_inff();
  static constexpr bool kHasDivisor = false;
  static SPARSECORE_INLINE typename S::F32 combine(typename S::F32 a, typename S::F32 b) { return S::maximum(a, b); }
  static SPARSECORE_INLINE typename S::F32 finish(typename S::F32 acc, const float*, typename S::F32) { return acc; }
};
template <class S>
struct SumOf {
  static constexpr float kNeutral = -0.0f;
  static constexpr bool kHasDivisor = true;
  static SPARSECORE_INLINE typename S::F32 combine(typename S::F32 a, typename S::F32 b) { return S::add(a, b); }
  // The divisor of an output is one number for its row times one for its column.
  static SPARSECORE_INLINE typename S::F32 finish(typename S::F32 acc, const float* columns, typename S::F32 row) {
    return S::div(acc, S::mul(S::load(columns), row));
  }
};

// Taps of a window along one axis: those inside of [0, size), and how many the divisor counts.
struct Taps {
  int64_t first;  // pixel of the first one inside
  int64_t inside;
  int64_t counted;
};
inline Taps taps_of(int64_t out, int64_t stride, int64_t padding, int64_t kernel, int64_t dilation, int64_t size,
                    bool count_include_pad) {
  const int64_t begin = out * stride - padding;
  if (begin >= 0 && begin + (kernel - 1) * dilation < size) return {begin, kernel, kernel};
  const int64_t skipped = begin < 0 ? smaller(divide_up(-begin, dilation), kernel) : 0;
  const int64_t end = begin < size ? smaller(divide_up(size - begin, dilation), kernel) : 0;
  const int64_t padded = begin < size + padding ? smaller(size + padding - begin, kernel) : 0;  // dilation 1
  const int64_t inside = larger(end - skipped, 0);
  return {begin + skipped * dilation, inside, count_include_pad ? padded : inside};
}

// What the passes need to know, and where the parts of the scratch memory are:
//
//   combined   [rows][row_floats]   the pixels of x from `left`, a cache line; what is around them stays neutral
//   counted    [OW in vectors]      taps along W that the divisor of each output counts
template <class S>
struct PoolPlan {
  int64_t left;        // where pixels begin: the padding in whole cache lines, so that stores are aligned
  int64_t pixels;      // columns of x that a window reaches
  int64_t row_floats;  // of a combined row, as far as the last vector of outputs reads
  int64_t rows;        // combined rows at a time
  int64_t tile_rows;   // rows of y in a tile
  int64_t out_floats;  // OW in whole vectors

  explicit PoolPlan(const Pool2dArgs& args) {
    left = divide_up(args.padding_w, kLineFloats) * kLineFloats;
    out_floats = divide_up(args.out_width, S::kLanes) * S::kLanes;
    const int64_t reached = out_floats * args.stride_w + (args.kernel_w - 1) * args.dilation_w;
    row_floats = divide_up(left - args.padding_w + reached, kLineFloats) * kLineFloats;
    pixels = larger(smaller(args.width, row_floats - left), 0);
    rows = larger(kCombinedBytes / (row_floats * int64_t(sizeof(float))), 1);
    const int64_t parts = parts_of_image(args.threads, args.batch);
    tile_rows = balanced(args.out_height, larger(kTileOutputs / larger(args.out_width, 1), 1), parts);
    rows = smaller(rows, tile_rows);
  }
  int64_t tiles_of_image(const Pool2dArgs& args) const { return divide_up(args.out_height, tile_rows); }
  int64_t scratch_floats() const { return rows * row_floats + out_floats; }
};

// The taps at x, x + step, ..., combined for `pixels` columns.
template <class S, class Op, class T>
SPARSECORE_INLINE void combine_rows(const T* x, int64_t step, int64_t taps, int64_t pixels, float* combined) {
  constexpr int L = S::kLanes;
  int64_t i = 0;
  for (; i + kVectors * L <= pixels; i += kVectors * L) {
    typename S::F32 acc[kVectors];
    SPARSECORE_UNROLL
    for (int j = 0; j < kVectors; ++j) acc[j] = S::load(x + i + j * L);
    for (int64_t k = 1; k < taps; ++k) {
      SPARSECORE_UNROLL
      for (int j = 0; j < kVectors; ++j) acc[j] = Op::combine(acc[j], S::load(x + k * step + i + j * L));
    }
    SPARSECORE_UNROLL
    for (int j = 0; j < kVectors; ++j) S::store(combined + i + j * L, acc[j]);
  }
  for (; i + L <= pixels; i += L) {
    auto acc = S::load(x + i);
    for (int64_t k = 1; k < taps; ++k) acc = Op::combine(acc, S::load(x + k * step + i));
    S::store(combined + i, acc);
  }
  if (i < pixels) {
    const int count = static_cast<int>(pixels - i);
    auto acc = S::load_n(x + i, count);
    for (int64_t k = 1; k < taps; ++k) acc = Op::combine(acc, S::load_n(x + k * step + i, count));
    S::store_n(combined + i, acc, count);
  }
}

// Lanes at from, from + stride, ...
template <class S>
struct Unit {
  SPARSECORE_INLINE typename S::F32 load(const float* from) const { return S::load(from); }
};
template <class S>
struct Even {
  SPARSECORE_INLINE typename S::F32 load(const float* from) const {
    return S::even(S::load(from), S::load(from + S::kLanes));
  }
};
template <class S>
struct Gathered {
  int32_t index[S::kLanes];
  explicit Gathered(int64_t stride) {
    for (int i = 0; i < S::kLanes; ++i) index[i] = static_cast<int32_t>(i * stride);
  }
  SPARSECORE_INLINE typename S::F32 load(const float* from) const { return S::gather(from, index); }
};

// function(lanes) for the stride.
template <class S, class Function>
SPARSECORE_INLINE void with_stride(int64_t stride, Function function) {
  if (stride == 1) {
    function(Unit<S>{});
  } else if (stride == 2) {
    function(Even<S>{});
  } else {
    function(Gathered<S>(stride));
  }
}

// One row of y from a combined row. finish(what was combined, first of its outputs) makes the results.
template <class S, class Op, class T, class Lanes, class Finish>
SPARSECORE_INLINE void combine_columns(const float* combined, int64_t stride, int64_t dilation, int64_t taps, T* y,
                                       int64_t n, const Lanes& lanes, Finish finish) {
  constexpr int L = S::kLanes;
  const auto output = [&](int64_t i) SPARSECORE_LAMBDA_INLINE {
    const float* from = combined + i * stride;
    auto acc = lanes.load(from);
    for (int64_t k = 1; k < taps; ++k) acc = Op::combine(acc, lanes.load(from + k * dilation));
    return finish(acc, i);
  };
  int64_t i = 0;
  for (; i + L <= n; i += L) S::store(y + i, output(i));
  if (i < n) S::store_n(y + i, output(i), static_cast<int>(n - i));
}

// The sum of n numbers, in four vectors that do not wait for each other.
template <class S, class T>
float sum_of(const T* x, int64_t n) {
  constexpr int L = S::kLanes;
  typename S::F32 acc[kVectors];
  SPARSECORE_UNROLL
  for (int j = 0; j < kVectors; ++j) acc[j] = S::zero();
  int64_t i = 0;
  for (; i + kVectors * L <= n; i += kVectors * L) {
    SPARSECORE_UNROLL
    for (int j = 0; j < kVectors; ++j) acc[j] = S::add(acc[j], S::load(x + i + j * L));
  }
  for (; i + L <= n; i += L) acc[0] = S::add(acc[0], S::load(x + i));
  if (i < n) acc[1] = S::add(acc[1], S::load_n(x + i, static_cast<int>(n - i)));
  return S::reduce_add(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])));
}

inline Taps rows_of_window(const Pool2dArgs& args, int64_t oh) {
  return taps_of(oh, args.stride_h, args.padding_h, args.kernel_h, args.dilation_h, args.height,
                 args.count_include_pad);
}
inline Taps columns_of_window(const Pool2dArgs& args, int64_t ow) {
  return taps_of(ow, args.stride_w, args.padding_w, args.kernel_w, args.dilation_w, args.width, args.count_include_pad);
}

inline float row_divisor(const Pool2dArgs& args, const Taps& rows) {
  return static_cast<float>(args.divisor_override != 0 ? args.divisor_override : rows.counted);
}
inline float column_divisor(const Pool2dArgs& args, const Taps& columns) {
  return args.divisor_override != 0 ? 1.0f : static_cast<float>(columns.counted);
}

// One output per plane, the average of all of it.
inline bool is_global_average(const Pool2dArgs& args) {
  return args.mode == PoolMode::kAverage && args.out_height == 1 && args.out_width == 1 &&
         rows_of_window(args, 0).inside == args.height && columns_of_window(args, 0).inside == args.width;
}

template <class S>
struct Pool2dF32 {
  static bool supports(const Pool2dArgs&) { return true; }

  static int64_t num_tiles(const Pool2dArgs& args) {
    if (args.out_height == 0 || args.out_width == 0) return 0;
    return args.batch * PoolPlan<S>(args).tiles_of_image(args);
  }

  static int64_t scratch_bytes(const Pool2dArgs& args) {
    return is_global_average(args) ? 0 : PoolPlan<S>(args).scratch_floats() * int64_t(sizeof(float));
  }

  static void run(const Pool2dArgs& args, Range channels, Range tiles, void* scratch) {
    with_dtype(args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (is_global_average(args)) {
        average_planes<T>(args, channels, tiles);
      } else if (args.mode == PoolMode::kMax) {
        run_tiles<MaxOf<S>, T>(args, channels, tiles, static_cast<float*>(scratch));
      } else {
        run_tiles<SumOf<S>, T>(args, channels, tiles, static_cast<float*>(scratch));
      }
    });
  }

 private:
  // A tile is an image then.
  template <class T>
  static void average_planes(const Pool2dArgs& args, Range channels, Range images) {
    const float divisor = row_divisor(args, rows_of_window(args, 0)) * column_divisor(args, columns_of_window(args, 0));
    const int64_t size = args.height * args.width;
    for (int64_t image = images.begin; image < images.end; ++image) {
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t plane = image * args.channels + c;
        const float sum = sum_of<S>(static_cast<const T*>(args.x) + plane * size, size);
        S::store_n(static_cast<T*>(args.y) + plane, S::div(S::set1(sum), S::set1(divisor)), 1);
      }
    }
  }

  template <class Op, class T>
  static void run_tiles(const Pool2dArgs& args, Range channels, Range tiles, float* combined) {
    const PoolPlan<S> plan(args);
    float* counted = combined + plan.rows * plan.row_floats;
    for (int64_t i = 0; i < plan.rows * plan.row_floats; ++i) combined[i] = Op::kNeutral;
    for (int64_t i = 0; i < plan.out_floats && Op::kHasDivisor; ++i) {
      counted[i] = i < args.out_width ? column_divisor(args, columns_of_window(args, i)) : 1.0f;
    }
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / plan.tiles_of_image(args), first = t % plan.tiles_of_image(args) * plan.tile_rows;
      const Range rows{first, smaller(first + plan.tile_rows, args.out_height)};
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t plane = image * args.channels + c;
        const T* x = static_cast<const T*>(args.x) + plane * args.height * args.width;
        T* y = static_cast<T*>(args.y) + plane * args.out_height * args.out_width;
        for (int64_t row = rows.begin; row < rows.end; row += plan.rows) {
          pool_rows<Op>(args, plan, x, {row, smaller(row + plan.rows, rows.end)}, y, combined, counted);
        }
      }
    }
  }

  template <class Op, class T>
  static void pool_rows(const Pool2dArgs& args, const PoolPlan<S>& plan, const T* x, Range rows, T* y, float* combined,
                        const float* counted) {
    for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
      const Taps taps = rows_of_window(args, oh);
      float* row = combined + (oh - rows.begin) * plan.row_floats + plan.left;
      if (taps.inside == 0) {
        for (int64_t i = 0; i < plan.pixels; ++i) row[i] = Op::kNeutral;
      } else {
        combine_rows<S, Op>(x + taps.first * args.width, args.dilation_h * args.width, taps.inside, plan.pixels, row);
      }
    }
    with_stride<S>(args.stride_w, [&](const auto& lanes) SPARSECORE_LAMBDA_INLINE {
      for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
        const float divisor = Op::kHasDivisor ? row_divisor(args, rows_of_window(args, oh)) : 1.0f;
        const auto finish = [&](typename S::F32 acc, int64_t i)
                                SPARSECORE_LAMBDA_INLINE { return Op::finish(acc, counted + i, S::set1(divisor)); };
        const float* row = combined + (oh - rows.begin) * plan.row_floats + plan.left - args.padding_w;
        combine_columns<S, Op>(row, args.stride_w, args.dilation_w, args.kernel_w, y + oh * args.out_width,
                               args.out_width, lanes, finish);
      }
    });
  }
};

}  // namespace
}  // namespace sparsecore
