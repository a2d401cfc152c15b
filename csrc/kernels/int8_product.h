// What the int8 products share: finding the activations of output positions, and the way from int32 sums to y.
// Algorithm text; include after a wrapper that defines Simd.
//
// A Product computes the sums of NB blocks of rows x T positions:
//   Args; kBlocks and kPositions: the most of both at once, the latter a power of two;
//   kByteOffset: what it takes off the bytes before it multiplies them;
//   kWidens: it reads the activations of a tile widened to int16, quads side by side, with `offset` to match;
//   supports(weight); num_offsets(weight); fill_offsets(args, offset): where pieces of K lie, from a position's start;
//   accumulate<NB, T>(weight, block, x, offset, acc, ld): writes them to acc[position * ld + lane of the NB blocks];
//   put_in_order(place, sums), if it has a fast way: see below;
//   kHasScaledSums, if its sums are floats that have their scale and no zero point: accumulate(weight, zero point in
//   multiplied bytes, block, x, acc, ld) then.
#pragma once

#include <cstdint>

#include "kernels/copy.h"
#include "kernels/to_bytes.h"
#include "simd/activation.h"
#include "simd/target.h"
#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Positions of a tile: so many pass over a block of the weight while it is in the first-level cache.
constexpr int kTilePositions = 32;
// Bytes of x that stay in a second-level cache while all blocks of rows pass over them.
constexpr int64_t kActivationsInCache = 400'000;
constexpr int kMaxTileRows = 64;  // kBlocks * lanes of any Product

struct Places {
  const uint8_t* x[kTilePositions];
  float scale[kTilePositions];
  int64_t first;  // position
  int count;
};

// What a Product has computed, acc[position * ld + lane], and what its zero point adds to that.
struct IntegerSums {
  const int32_t* acc;
  int64_t ld;
  const int32_t* zero;

  template <class S>
  SPARSECORE_INLINE typename S::F32 load(int64_t i, int64_t lane) const {
    return S::from_difference(acc + i * ld + lane, zero + lane);
  }
  template <class S, class Args>
  static SPARSECORE_INLINE typename S::F32 scale(const Args& args, int64_t row, int n) {
    return S::load_n(args.weight_scale + row, n);
  }
};

// The same with a scale for each group of columns in it.
struct ScaledSums {
  const float* acc;
  int64_t ld;

  template <class S>
  SPARSECORE_INLINE typename S::F32 load(int64_t i, int64_t lane) const {
    return S::load(acc + i * ld + lane);
  }
  template <class S, class Args>
  static SPARSECORE_INLINE typename S::F32 scale(const Args&, int64_t, int) {
    return S::set1(1.0f);
  }
};

template <class Product>
concept HasScaledSums = requires { Product::kHasScaledSums; };
template <class Product>
struct SumOf {
  using Type = int32_t;
};
template <HasScaledSums Product>
struct SumOf<Product> {
  using Type = float;
};

inline void locate(const ActivationsU8& x, int64_t first, Places& places) {
  places.first = first;
  places.count = static_cast<int>(smaller(kTilePositions, x.positions() - first));
  int64_t column = first % x.width, row = first / x.width % x.height, image = first / x.width / x.height;
  for (int i = 0; i < places.count; ++i) {
    places.x[i] = x.x + image * x.image_stride + row * x.row_stride + column * x.column_stride;
    places.scale[i] = x.scale[image];
    if (++column < x.width) continue;
    column = 0;
    if (++row < x.height) continue;
    row = 0;
    ++image;
  }
}

// Positions that share the scale, the bias and the choice of the activation.
constexpr int kTogether = 4;

// v = activation(v + residual), stored as y, of n numbers at each of V places that lie `ld` apart.
template <class S, int V, class T>
SPARSECORE_INLINE void finish(typename S::F32 (&v)[V], Activation activation, const void* residual, void* y, int64_t at,
                              int64_t ld, int n) {
  if (residual != nullptr) {
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) v[j] = S::add(v[j], S::load_n(static_cast<const T*>(residual) + at + j * ld, n));
  }
  activate<S, V>(v, activation);
  T* to = static_cast<T*>(y) + at;
  if (n == S::kLanes) {
    for (int j = 0; j < V; ++j) S::store(to + j * ld, v[j]);
  } else {
    for (int j = 0; j < V; ++j) S::store_n(to + j * ld, v[j], n);
  }
}

// Calls write(v, position, row, n) with the sums of kTogether or 1 positions x n rows, scaled and with their bias.
template <class S, class Args, class Sums, class Write>
SPARSECORE_INLINE void scale_sums(const Args& args, const Places& places, Range rows, const Sums& sums, Write write) {
  for (int64_t row = rows.begin; row < rows.end; row += S::kLanes) {
    const int n = static_cast<int>(smaller(S::kLanes, rows.end - row));
    const int64_t lane = row - rows.begin;
    const auto scale = sums.template scale<S>(args, row, n);
    const auto bias = args.epilogue.bias == nullptr ? S::zero() : S::load_n(args.epilogue.bias + row, n);
    const auto scaled = [&](int i) SPARSECORE_LAMBDA_INLINE {
      return S::fma(sums.template load<S>(i, lane), S::mul(S::set1(places.scale[i]), scale), bias);
    };
    int i = 0;
    for (; i + kTogether <= places.count; i += kTogether) {
      typename S::F32 v[kTogether] = {scaled(i), scaled(i + 1), scaled(i + 2), scaled(i + 3)};
      write(v, i, row, n);
    }
    for (; i < places.count; ++i) {
      typename S::F32 v[1] = {scaled(i)};
      write(v, i, row, n);
    }
  }
}

template <class S, class T, class Args, class Sums>
void emit_rows(const Args& args, const Places& places, Range rows, const Sums& sums) {
  scale_sums<S>(args, places, rows, sums,
                [&]<int V>(typename S::F32(&v)[V], int i, int64_t row, int n) SPARSECORE_LAMBDA_INLINE {
                  const int64_t at = (places.first + i) * args.ldy + row;
                  finish<S, V, T>(v, args.epilogue.activation, args.residual, args.y, at, args.ldy, n);
                });
}

template <class S, class Args, class Sums>
void emit_int8(const Args& args, const Places& places, Range rows, const Sums& sums) {
  const ToBytes<S> to_bytes(args.y_inverse_scale, args.y_zero_point, 0);
  scale_sums<S>(args, places, rows, sums,
                [&]<int V>(typename S::F32(&v)[V], int i, int64_t row, int n) SPARSECORE_LAMBDA_INLINE {
                  activate<S, V>(v, args.epilogue.activation);
                  uint8_t* y = static_cast<uint8_t*>(args.y) + (places.first + i) * args.ldy + row;
                  for (int j = 0; j < V; ++j) {
                    if (n == S::kLanes) {
                      to_bytes.store(y + j * args.ldy, v[j], WholeVector<S>{});
                    } else {
                      to_bytes.store(y + j * args.ldy, v[j], PartOfVector<S>{n});
                    }
                  }
                });
}

// Transposed through a buffer. Positions of a tile may lie in several images.
template <class S, class T, class Args, class Sums>
void emit_columns(const Args& args, const Places& places, Range rows, const Sums& sums) {
  alignas(64) float by_position[kTilePositions * kMaxTileRows], by_row[kMaxTileRows * kTilePositions];
  scale_sums<S>(args, places, rows, sums,
                [&]<int V>(typename S::F32(&v)[V], int i, int64_t row, int) SPARSECORE_LAMBDA_INLINE {
                  for (int j = 0; j < V; ++j) S::store(by_position + (i + j) * kMaxTileRows + row - rows.begin, v[j]);
                });
  transpose_block<S>(by_position, kMaxTileRows, places.count, rows.size(), by_row, kTilePositions);
  const int64_t pixels = args.x.height * args.x.width;
  for (int begin = 0, size = 0; begin < places.count; begin += size) {
    const int64_t position = places.first + begin, image = position / pixels, pixel = position % pixels;
    size = static_cast<int>(smaller(places.count - begin, pixels - pixel));
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t at = image * args.ldy + row * pixels + pixel;
      const float* v = by_row + (row - rows.begin) * kTilePositions + begin;
      if (size == kTilePositions) {
        // The next tile's part of this row is in another page than all else that is written: 64 -> 256 channels at
        // 56x56 1.0 -> 0.73 ms.
        for (int64_t i = 0; i < kTilePositions; i += 64 / int64_t(sizeof(T))) {
          __builtin_prefetch(static_cast<T*>(args.y) + at + kTilePositions + i, 1);
        }
        constexpr int V = kTilePositions / S::kLanes;
        typename S::F32 whole[V];
        for (int j = 0; j < V; ++j) whole[j] = S::load(v + j * S::kLanes);
        finish<S, V, T>(whole, args.epilogue.activation, args.residual, args.y, at, S::kLanes, S::kLanes);
        continue;
      }
      for (int i = 0; i < size; i += S::kLanes) {
        const int n = static_cast<int>(smaller(S::kLanes, size - i));
        typename S::F32 part[1] = {S::load_n(v + i, n)};
        finish<S, 1, T>(part, args.epilogue.activation, args.residual, args.y, at + i, 0, n);
      }
    }
  }
}

template <class S, class Args, class Sums>
void emit(const Args& args, const Places& places, Range rows, const Sums& sums) {
  if (args.is_int8) return emit_int8<S>(args, places, rows, sums);
  with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (args.layout == Layout::kRows) {
      emit_rows<S, T>(args, places, rows, sums);
    } else {
      emit_columns<S, T>(args, places, rows, sums);
    }
  });
}

// sums[r] = sums[place[r]] for the rows of a window.
template <class Product, class Sum>
void put_in_order(const int32_t* place, Sum* sums) {
  if constexpr (requires { Product::put_in_order(place, static_cast<int32_t*>(nullptr)); }) {
    Product::put_in_order(place, reinterpret_cast<int32_t*>(sums));  // by vectors, which may alias anything
  } else {
    Sum stored[kLookupWindow];
    for (int64_t r = 0; r < kLookupWindow; ++r) stored[r] = sums[r];
    for (int64_t r = 0; r < kLookupWindow; ++r) sums[r] = stored[place[r]];
  }
}

template <class S, class Product>
struct Int8Kernel {
  using Args = typename Product::Args;
  using Sum = typename SumOf<Product>::Type;
  static bool supports(const Args& args) { return Product::supports(args.weight); }
  static int64_t num_tiles(const Args& args) { return divide_up(args.x.positions(), kTilePositions); }
  static int64_t scratch_bytes(const Args& args) {
    return offset_bytes(args) + (Product::kWidens ? kTilePositions * wide_bytes(args) : 0);
  }

  static void run(const Args& args, Range blocks, Range tiles, void* scratch) {
    int64_t* offset = static_cast<int64_t*>(scratch);
    if (!Product::kWidens) Product::fill_offsets(args, offset);
    const bool keeps_x = !Product::kWidens && args.layout == Layout::kColumns &&
                         tiles.size() * kTilePositions * args.weight.cols <= kActivationsInCache;
    Places places;
    if (keeps_x) {  // rows of y are far apart: each is written from end to end
      for (int64_t block = blocks.begin, next = 0; block < blocks.end; block = next) {
        next = smaller(end_of_group(args.weight, block), blocks.end);
        for (int64_t t = tiles.begin; t < tiles.end; ++t) {
          locate(args.x, t * kTilePositions, places);
          run_group(args, {block, next}, places, offset);
        }
      }
      return;
    }
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      locate(args.x, t * kTilePositions, places);
      if constexpr (Product::kWidens) widen(args, places, offset, static_cast<uint8_t*>(scratch) + offset_bytes(args));
      run_group(args, blocks, places, offset);
    }
  }

 private:
  static int64_t offset_bytes(const Args& args) {
    return divide_up(int64_t(sizeof(int64_t)) * Product::num_offsets(args.weight), 64) * 64;
  }
  // Of one position.
  static int64_t wide_bytes(const Args& args) { return args.weight.segments * args.weight.quads() * 8; }

  static void widen(const Args& args, Places& places, int64_t* offset, uint8_t* scratch) {
    const int64_t columns = args.weight.quads() * 4;
    for (int i = 0; i < places.count; ++i) {
      int16_t* wide = reinterpret_cast<int16_t*>(scratch + i * wide_bytes(args));
      for (int64_t s = 0; s < args.weight.segments; ++s) {
        const uint8_t* x = places.x[i] + args.x.segment_offset[s];
        for (int64_t k = 0; k < columns; ++k) wide[s * columns + k] = x[k];
        offset[s] = s * columns * 2;
      }
      places.x[i] = reinterpret_cast<const uint8_t*>(wide);
    }
  }

  // Blocks up to here leave together.
  static int64_t end_of_group(const decltype(Args::weight)& weight, int64_t block) {
    if constexpr (requires { weight.row_place; }) {
      if (weight.row_place != nullptr) return (block / weight.window_blocks() + 1) * weight.window_blocks();
    }
    return block + Product::kBlocks;
  }

  static void run_group(const Args& args, Range blocks, const Places& places, const int64_t* offset) {
    int64_t block = blocks.begin;
    if constexpr (requires { args.weight.row_place; }) {
      if (args.weight.row_place != nullptr) {
        for (int64_t next = 0; block < blocks.end; block = next) {
          next = smaller(end_of_group(args.weight, block), blocks.end);
          run_window(args, {block, next}, places, offset);
        }
        return;
      }
    }
    for (; block + Product::kBlocks <= blocks.end; block += Product::kBlocks) {
      run_blocks<Product::kBlocks>(args, block, places, offset);
    }
    for (; block < blocks.end; ++block) run_blocks<1>(args, block, places, offset);
  }

  template <int NB>
  static void run_blocks(const Args& args, int64_t block, const Places& places, const int64_t* offset) {
    const int64_t lanes = args.weight.lanes, ld = NB * lanes;
    const Range rows{block * lanes, smaller((block + NB) * lanes, args.weight.rows)};
    alignas(64) Sum acc[kTilePositions * kMaxTileRows];
    alignas(64) int32_t zero[kMaxTileRows] = {};
    zero_sums(args, rows, zero);
    accumulate_all<NB>(args, block, places, offset, acc, ld);
    emit<S>(args, places, rows, sums_at(acc, ld, zero));
  }

  // Blocks of one window, whose rows are put in order on the way to y.
  static void run_window(const Args& args, Range blocks, const Places& places, const int64_t* offset) {
    constexpr int64_t ld = kLookupWindow;
    const int64_t lanes = args.weight.lanes, window = blocks.begin / args.weight.window_blocks();
    const int64_t first_block = window * args.weight.window_blocks();
    const Range rows{window * ld, smaller((window + 1) * ld, args.weight.rows)};
    // A single row is emitted from where it is by loads of whole vectors.
    alignas(64) Sum acc[kTilePositions * ld + S::kLanes];
    alignas(64) int32_t zero[ld + S::kLanes] = {}, place[ld] = {};
    zero_sums(args, rows, zero);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      accumulate_all<1>(args, block, places, offset, acc + (block - first_block) * lanes, ld);
    }
    for (int64_t i = 0; i < rows.size(); ++i) place[i] = args.weight.row_place[rows.begin + i];
    for (int i = 0; i < places.count; ++i) put_in_order<Product>(place, acc + i * ld);
    const auto emit_part = [&](int64_t at, int64_t count) {
      const Range part{rows.begin + at, rows.begin + at + count};
      emit<S>(args, places, part, sums_at(acc + at, ld, zero + at));
    };
    if (blocks.begin == first_block && divide_up(rows.size(), lanes) == blocks.size()) {
      for (int64_t at = 0; at < rows.size(); at += kMaxTileRows) {
        emit_part(at, smaller(kMaxTileRows, rows.size() - at));
      }
      return;
    }
    for (int64_t at = 0; at < rows.size(); ++at) {  // where threads share a window
      const int64_t block = first_block + place[at] / lanes;
      if (blocks.begin <= block && block < blocks.end) emit_part(at, 1);
    }
  }

  static auto sums_at(const Sum* acc, int64_t ld, const int32_t* zero) {
    if constexpr (HasScaledSums<Product>) {
      return ScaledSums{acc, ld};
    } else {
      return IntegerSums{acc, ld, zero};
    }
  }

  // What the zero point of the activations adds to the sums of the rows.
  static void zero_sums(const Args& args, Range rows, int32_t* zero) {
    if constexpr (HasScaledSums<Product>) return;
    for (int64_t i = 0; i < rows.size(); ++i) {
      const uint32_t sum = static_cast<uint32_t>(args.weight_sum[rows.begin + i]);
      zero[i] = static_cast<int32_t>(static_cast<uint32_t>(args.x.zero_point - Product::kByteOffset) * sum);
    }
  }

  template <int NB, int T>
  static SPARSECORE_INLINE void accumulate(const Args& args, int64_t block, const uint8_t* const* x,
                                           const int64_t* offset, Sum* acc, int64_t ld) {
    if constexpr (HasScaledSums<Product>) {
      const int32_t zero_point = args.x.zero_point - Product::kByteOffset;
      Product::template accumulate<NB, T>(args.weight, zero_point, block, x, acc, ld);
    } else {
      Product::template accumulate<NB, T>(args.weight, block, x, offset, acc, ld);
    }
  }

  // NB blocks, all positions of a tile.
  template <int NB>
  static void accumulate_all(const Args& args, int64_t block, const Places& places, const int64_t* offset, Sum* acc,
                             int64_t ld) {
    int i = 0;
    for (; i + Product::kPositions <= places.count; i += Product::kPositions) {
      accumulate<NB, Product::kPositions>(args, block, places.x + i, offset, acc + i * ld, ld);
    }
    accumulate_rest<NB, Product::kPositions / 2>(args, block, places, offset, acc, ld, i);
  }

  // The last positions, in halves of what is left.
  template <int NB, int T>
  static void accumulate_rest(const Args& args, int64_t block, const Places& places, const int64_t* offset, Sum* acc,
                              int64_t ld, int i) {
    if constexpr (T > 0) {
      if (i + T <= places.count) {
        accumulate<NB, T>(args, block, places.x + i, offset, acc + i * ld, ld);
        i += T;
      }
      accumulate_rest<NB, T / 2>(args, block, places, offset, acc, ld, i);
    }
  }
};

}  // namespace
}  // namespace sparsecore
