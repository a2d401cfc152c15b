// Activations to bytes: algorithm text; include after a wrapper that defines Simd.
#pragma once

#include "kernels/copy.h"
#include "kernels/to_bytes.h"
#include "simd/target.h"
#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// What the channels' own scales leave of x.
template <class S, class Size>
SPARSECORE_INLINE typename S::F32 balanced(typename S::F32 x, const float* inverse, int64_t c, Size size) {
  return inverse == nullptr ? x : S::mul(x, size.load(inverse + c));
}

// max|x| over an image, NaN if anything in it is NaN or infinite.
template <class S, class T>
float max_abs(const QuantizeArgs& args, const T* x) {
  const int64_t inner = args.channels_last ? args.channels : args.height * args.width;
  const int64_t outer = args.channels_last ? args.height * args.width : args.channels;
  const float* inverse = args.channel_inverse_scale;
  auto largest = S::zero(), nothing = S::zero();  // x - x is NaN where x is not finite
  for (int64_t o = 0; o < outer; ++o) {
    const auto plane = S::set1(inverse == nullptr || args.channels_last ? 1.0f : inverse[o]);
    for_vectors<S>(inner, [&](int64_t i, auto size) SPARSECORE_LAMBDA_INLINE {
      auto a = size.load(x + o * inner + i);
      a = args.channels_last ? balanced<S>(a, inverse, i, size) : S::mul(a, plane);
      largest = S::max(largest, S::abs(a));
      nothing = S::add(nothing, S::sub(a, a));
    });
  }
  float lanes[S::kLanes], result = 0.0f;
  S::store(lanes, largest);
  for (float lane : lanes) result = lane > result ? lane : result;
  return S::reduce_add(nothing) == 0.0f ? result : __builtin_nanf("");
}

template <class S, class T>
float dynamic_scale(const QuantizeArgs& args, const T* x) {
  const float largest = max_abs<S>(args, x);
  if (!(largest == largest)) return largest;
  // 127 steps below the smallest normal number would be a subnormal or zero scale: such images count as zero.
  return largest < 127.0f * 1.17549435e-38f ? 1.0f : largest / 127.0f;
}

// `count` neighbouring channels of one pixel.
template <class S, class T>
SPARSECORE_INLINE void channels_to_bytes(const QuantizeArgs& args, const ToBytes<S>& to_bytes, const T* x,
                                         int64_t channel, int64_t count, uint8_t* out) {
  const float* inverse = args.channel_inverse_scale == nullptr ? nullptr : args.channel_inverse_scale + channel;
  for_vectors<S>(count, [&](int64_t c, auto size) SPARSECORE_LAMBDA_INLINE {
    to_bytes.store(out + c, balanced<S>(size.load(x + c), inverse, c, size), size);
  });
}

// Pixels whose channels lie apart, by squares that are transposed; x is that of the first pixel. Pixels of several rows
// follow each other in x, so that each channel is read in long pieces (256 channels of 56x56: half the time of rows).
template <class S, class T>
void pixels_to_bytes(const QuantizeArgs& args, const ToBytes<S>& to_bytes, const T* x, int64_t count, uint8_t* out,
                     int64_t row_bytes) {
  constexpr int L = S::kLanes;
  alignas(64) float square[L * L];
  const int64_t plane = args.height * args.width;
  for (int64_t c = 0; c < args.channels; c += L) {
    const int64_t channels = smaller(L, args.channels - c);
    int64_t row = 0, column = 0;
    for (int64_t p = 0; p < count; p += L) {
      const int64_t pixels = smaller(L, count - p);
      transpose_block<S>(x + c * plane + p, plane, channels, pixels, square, L);
      for (int64_t i = 0; i < pixels; ++i) {
        channels_to_bytes<S>(args, to_bytes, square + i * L, c, channels,
                             out + row * row_bytes + column * args.ld_out + c);
        if (++column < args.width) continue;
        column = 0;
        ++row;
      }
    }
  }
}

inline void flip_sign_bits(const int8_t* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(x[i] ^ 0x80);
}

inline void row_of_integers(const QuantizeArgs& args, const int8_t* x, uint8_t* out) {
  const int64_t plane = args.height * args.width;
  for (int64_t w = 0; w < args.width; ++w) {
    if (args.channels_last) {
      flip_sign_bits(x + w * args.channels, args.channels, out + w * args.ld_out);
    } else {
      for (int64_t c = 0; c < args.channels; ++c) {
        out[w * args.ld_out + c] = static_cast<uint8_t>(x[w + c * plane] ^ 0x80);
      }
    }
  }
}

// Rows of pixels of a tile.
inline int64_t rows_of_tile(const QuantizeArgs& args) {
  constexpr int64_t kTilePixels = 512;
  return args.is_dynamic || args.width == 0 ? 1 : larger(1, kTilePixels / args.width);
}
inline int64_t tiles_of_image(const QuantizeArgs& args) {
  return args.is_dynamic ? 1 : divide_up(args.height + 2 * args.padding_h, rows_of_tile(args));
}

template <class S>
struct Quantize {
  static bool supports(const QuantizeArgs&) { return true; }
  static int64_t num_tiles(const QuantizeArgs& args) { return args.images * tiles_of_image(args); }
  static int64_t scratch_bytes(const QuantizeArgs&) { return 0; }

  static void run(const QuantizeArgs& args, Range, Range tiles, void*) {
    if (args.is_int8) return run_type<int8_t>(args, tiles);
    with_dtype(args.dtype, [&](auto type) { run_type<typename decltype(type)::type>(args, tiles); });
  }

 private:
  template <class T>
  static void run_type(const QuantizeArgs& args, Range tiles) {
    const int64_t image_size = args.channels * args.height * args.width;
    const int64_t padded_height = args.height + 2 * args.padding_h;
    const int64_t row_bytes = (args.width + 2 * args.padding_w) * args.ld_out;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = t / tiles_of_image(args), first = t % tiles_of_image(args) * rows_of_tile(args);
      const T* x = static_cast<const T*>(args.x) + image * image_size;
      if constexpr (sizeof(T) > 1) {
        if (args.is_dynamic) args.scale[image] = dynamic_scale<S>(args, x);
      }
      if (args.out == nullptr) continue;
      uint8_t* out = args.out + image * padded_height * row_bytes;
      const Range rows{first, smaller(first + rows_of_tile(args), padded_height)};
      fill_borders(args, rows, out, row_bytes);
      const Range inner{larger(rows.begin - args.padding_h, 0), smaller(rows.end - args.padding_h, args.height)};
      if (inner.size() <= 0) continue;
      const T* from = x + inner.begin * args.width * (args.channels_last ? args.channels : 1);
      uint8_t* to = out + (inner.begin + args.padding_h) * row_bytes + args.padding_w * args.ld_out;
      write_rows(args, from, inner.size(), args.scale[image], to, row_bytes);
    }
  }

  static void fill_borders(const QuantizeArgs& args, Range rows, uint8_t* out, int64_t row_bytes) {
    const int zero = 128 + args.zero_point;
    const int64_t side = args.padding_w * args.ld_out;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      uint8_t* at = out + row * row_bytes;
      if (row < args.padding_h || row >= args.padding_h + args.height) {
        __builtin_memset(at, zero, static_cast<size_t>(row_bytes));
      } else if (side > 0) {
        __builtin_memset(at, zero, static_cast<size_t>(side));
        __builtin_memset(at + row_bytes - side, zero, static_cast<size_t>(side));
      }
    }
  }

  template <class T>
  static void write_rows(const QuantizeArgs& args, const T* x, int64_t rows, float scale, uint8_t* out,
                         int64_t row_bytes) {
    const ToBytes<S> to_bytes(1.0f / scale, args.zero_point, 128);
    if (!args.channels_last) return pixels_to_bytes<S>(args, to_bytes, x, rows * args.width, out, row_bytes);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t w = 0; w < args.width; ++w) {
        const T* from = x + (row * args.width + w) * args.channels;
        channels_to_bytes<S>(args, to_bytes, from, 0, args.channels, out + row * row_bytes + w * args.ld_out);
      }
    }
  }
  static void write_rows(const QuantizeArgs& args, const int8_t* x, int64_t rows, float, uint8_t* out,
                         int64_t row_bytes) {
    for (int64_t row = 0; row < rows; ++row) {
      row_of_integers(args, x + row * args.width * (args.channels_last ? args.channels : 1), out + row * row_bytes);
    }
  }
};

}  // namespace
}  // namespace sparsecore
