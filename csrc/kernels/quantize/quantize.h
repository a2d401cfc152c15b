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

// A row of pixels whose channels lie apart, by squares that are transposed.
template <class S, class T>
void row_to_bytes(const QuantizeArgs& args, const ToBytes<S>& to_bytes, const T* x, uint8_t* out) {
  constexpr int L = S::kLanes;
  alignas(64) float square[L * L];
  const int64_t plane = args.height * args.width;
  for (int64_t c = 0; c < args.channels; c += L) {
    const int64_t channels = smaller(L, args.channels - c);
    for (int64_t w = 0; w < args.width; w += L) {
      const int64_t pixels = smaller(L, args.width - w);
      transpose_block<S>(x + c * plane + w, plane, channels, pixels, square, L);
      for (int64_t i = 0; i < pixels; ++i) {
        channels_to_bytes<S>(args, to_bytes, square + i * L, c, channels, out + (w + i) * args.ld_out + c);
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

template <class S>
struct Quantize {
  static bool supports(const QuantizeArgs&) { return true; }
  static int64_t num_tiles(const QuantizeArgs& args) {
    return args.is_dynamic ? args.images : args.images * (args.height + 2 * args.padding_h);
  }
  static int64_t scratch_bytes(const QuantizeArgs&) { return 0; }

  static void run(const QuantizeArgs& args, Range, Range tiles, void*) {
    if (args.is_int8) return run_type<int8_t>(args, tiles);
    with_dtype(args.dtype, [&](auto type) { run_type<typename decltype(type)::type>(args, tiles); });
  }

 private:
  template <class T>
  static void run_type(const QuantizeArgs& args, Range tiles) {
    const int64_t image_size = args.channels * args.height * args.width;
    const int64_t padded_height = args.height + 2 * args.padding_h, padded_width = args.width + 2 * args.padding_w;
    const int64_t row_bytes = padded_width * args.ld_out;
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t image = args.is_dynamic ? t : t / padded_height;
      const T* x = static_cast<const T*>(args.x) + image * image_size;
      if constexpr (sizeof(T) > 1) {
        if (args.is_dynamic) args.scale[image] = dynamic_scale<S>(args, x);
      }
      if (args.out == nullptr) continue;
      uint8_t* out = args.out + t * row_bytes;
      const int64_t row = t % padded_height - args.padding_h;
      if (row < 0 || row >= args.height) {
        __builtin_memset(out, 128 + args.zero_point, static_cast<size_t>(row_bytes));
        continue;
      }
      const int64_t side = args.padding_w * args.ld_out;
      __builtin_memset(out, 128 + args.zero_point, static_cast<size_t>(side));
      __builtin_memset(out + row_bytes - side, 128 + args.zero_point, static_cast<size_t>(side));
      const T* from = x + row * args.width * (args.channels_last ? args.channels : 1);
      write_row(args, from, args.scale[image], out + side);
    }
  }

  template <class T>
  static void write_row(const QuantizeArgs& args, const T* x, float scale, uint8_t* out) {
    const ToBytes<S> to_bytes(1.0f / scale, args.zero_point, 128);
    if (!args.channels_last) return row_to_bytes<S>(args, to_bytes, x, out);
    for (int64_t w = 0; w < args.width; ++w) {
      channels_to_bytes<S>(args, to_bytes, x + w * args.channels, 0, args.channels, out + w * args.ld_out);
    }
  }
  static void write_row(const QuantizeArgs& args, const int8_t* x, float, uint8_t* out) {
    row_of_integers(args, x, out);
  }
};

}  // namespace
}  // namespace sparsecore
