// A scale, a shift, a residual and an activation per channel, in one pass over memory: algorithm text; include after a
// wrapper that defines Simd.
#pragma once

#include "kernels/parts.h"
#include "simd/activation.h"
#include "simd/target.h"
#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Columns of a tile: large planes are cut, so that few channels keep many threads busy.
constexpr int64_t kTileColumns = 16384;

// Vectors at a time, which share the choice of the activation.
constexpr int kVectors = 4;

// Changes no number that it is added to: -0 + -0 is -0, where -0 + 0 would be 0.
constexpr float kNoShift = -0.0f;

// V vectors from x, the last of which ends after `count` lanes; scale(i, n) and shift(i, n) give the vector at i, of n.
template <class S, int V, class T, class Scale, class Shift>
SPARSECORE_INLINE void scale_shift_vectors(const T* x, const T* residual, T* y, int64_t i, int count,
                                           Activation activation, Scale scale, Shift shift) {
  constexpr int L = S::kLanes;
  typename S::F32 acc[V];
  const auto load = [&](const T* from)
                        SPARSECORE_LAMBDA_INLINE { return count == L ? S::load(from) : S::load_n(from, count); };
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) acc[j] = S::fma(load(x + i + j * L), scale(i + j * L, count), shift(i + j * L, count));
  if (residual != nullptr) {
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) acc[j] = S::add(acc[j], load(residual + i + j * L));
  }
  activate<S, V>(acc, activation);
  SPARSECORE_UNROLL
  for (int j = 0; j < V; ++j) {
    if (count == L) {
      S::store(y + i + j * L, acc[j]);
    } else {
      S::store_n(y + i + j * L, acc[j], count);
    }
  }
}

// y[i] = activation(x[i] * scale(i) + shift(i) + residual[i]) for i < n.
template <class S, class T, class Scale, class Shift>
SPARSECORE_INLINE void scale_shift_row(const T* x, const T* residual, T* y, int64_t n, Activation activation,
                                       Scale scale, Shift shift) {
  constexpr int L = S::kLanes;
  int64_t i = 0;
  for (; i + kVectors * L <= n; i += kVectors * L) {
    scale_shift_vectors<S, kVectors>(x, residual, y, i, L, activation, scale, shift);
  }
  for (; i + L <= n; i += L) scale_shift_vectors<S, 1>(x, residual, y, i, L, activation, scale, shift);
  if (i < n) scale_shift_vectors<S, 1>(x, residual, y, i, static_cast<int>(n - i), activation, scale, shift);
}

template <class S>
struct ScaleShiftF32 {
  static bool supports(const ScaleShiftArgs&) { return true; }
  static int64_t num_tiles(const ScaleShiftArgs& args) { return args.batch * tiles_of_image(args); }
  static int64_t scratch_bytes(const ScaleShiftArgs&) { return 0; }

  static void run(const ScaleShiftArgs& args, Range channels, Range tiles, void*) {
    with_dtype(args.dtype, [&](auto tag) {
      for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        const int64_t image = t / tiles_of_image(args), first = t % tiles_of_image(args) * tile_columns(args);
        const Range columns{first, smaller(first + tile_columns(args), args.columns)};
        run_tile<typename decltype(tag)::type>(args, image, channels, columns);
      }
    });
  }

 private:
  static int64_t tile_columns(const ScaleShiftArgs& args) {
    const int64_t parts = parts_of_image(args.threads, args.batch);
    return balanced(divide_up(args.columns, kLineFloats), kTileColumns / kLineFloats, parts) * kLineFloats;
  }
  static int64_t tiles_of_image(const ScaleShiftArgs& args) { return divide_up(args.columns, tile_columns(args)); }

  template <class T>
  static void run_tile(const ScaleShiftArgs& args, int64_t image, Range channels, Range columns) {
    const float* scale = args.scale == nullptr ? nullptr : args.scale + image * args.scale_batch_stride;
    const float* shift = args.epilogue.bias;
    const auto run_row = [&](int64_t channel, int64_t n, auto scale_at, auto shift_at) SPARSECORE_LAMBDA_INLINE {
      const int64_t at = (image * args.channels + channel) * args.columns + columns.begin;
      const T* residual = args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + at;
      scale_shift_row<S>(static_cast<const T*>(args.x) + at, residual, static_cast<T*>(args.y) + at, n,
                         args.epilogue.activation, scale_at, shift_at);
    };
    if (args.columns == 1) {  // the channels lie side by side
      run_row(channels.begin, channels.size(), vector_of(scale, channels.begin, 1.0f),
              vector_of(shift, channels.begin, kNoShift));
      return;
    }
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      const auto factor = S::set1(scale == nullptr ? 1.0f : scale[c]);
      const auto term = S::set1(shift == nullptr ? kNoShift : shift[c]);
      run_row(
          c, columns.size(), [=](int64_t, int) SPARSECORE_LAMBDA_INLINE { return factor; },
          [=](int64_t, int) SPARSECORE_LAMBDA_INLINE { return term; });
    }
  }

  static auto vector_of(const float* values, int64_t first, float missing) {
    return [=](int64_t i, int count) SPARSECORE_LAMBDA_INLINE {
      return values == nullptr ? S::set1(missing) : S::load_n(values + first + i, count);
    };
  }
};

}  // namespace
}  // namespace sparsecore
