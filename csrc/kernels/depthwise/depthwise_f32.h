// Depthwise convolution with float32 sums: algorithm text.
//
// A band, some rows of one channel, is copied with its padding as float32 into a buffer that stays in first-level cache
// (with stride s, the columns in their s phases), and every output row is then a sum of shifted rows of that buffer:
//
//   0 0 0 0 0        out[r, j ...] = sum over kw, kh of w[kh, kw] * row[s * r + kh][shift(kw) + j ...]
//   0 a b c 0
//   0 d e f 0        One vector of columns is computed for several output rows (lines) at once. For each kw, each row
//   0 g h i 0        is loaded once and used by all lines that need it: 8 lines of a 3x3 filter of stride 1 load 10
//   0 0 0 0 0        vectors for 24 multiply-adds.
//
// Where an output row fills half of a vector at most, a line is two rows, one in each half.
#pragma once

#include "kernels/conv2d/phases.h"
#include "kernels/copy.h"
#include "kernels/tile.h"
#include "simd/activation.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Output lines that are summed at once: their loads take less time than their multiply-adds, also where most of them
// cross a cache line.
constexpr int kMaxLines = 8;

// Beside the lines' sums, a column of the filter and the loaded row are in registers.
template <class S, int KH>
constexpr int kLines = S::kRegisters - KH - 2 < kMaxLines ? S::kRegisters - KH - 2 : kMaxLines;

template <class S>
constexpr bool kHasHalves = requires { &S::load_halves; };

// Floats of a band: half of a first-level cache, so that x and y pass by without evicting it.
constexpr int64_t kBandFloats = 4096;

// How an image is cut.
struct DepthwisePlan {
  bool has_halves;       // a line is two output rows
  int64_t band_rows;     // output rows of a band
  int64_t bands;         // of an image
  int64_t rows;          // of a band's buffer
  int64_t planes;        // bands that are packed before the first of them is computed
  int64_t phases;        // used phases of columns
  int64_t phase_floats;  // of one row
  int64_t pitch;         // floats from row to row

  int64_t buffer_floats() const { return rows * pitch; }
  int64_t rows_of_line() const { return has_halves ? 2 : 1; }
};

inline int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// The filters that have a text of their own, in which lines share rows.
inline bool is_unrolled(const ConvShape& shape) {
  const int64_t taps = shape.kernel_h;
  return (taps == 3 || taps == 5 || taps == 7) && shape.dilation_h == 1 && shape.stride_h <= 2;
}

template <class S>
DepthwisePlan make_depthwise_plan(const DepthwiseArgs& args) {
  DepthwisePlan plan{};
  plan.has_halves =
      kHasHalves<S> && is_unrolled(args) && args.stride_h == 1 && 2 * args.out_width <= int64_t(S::kLanes);
  plan.phases = phases_before(args.stride_w, args.stride_w, args.dilation_w, args.kernel_w);
  const int64_t shifts = (args.kernel_w - 1) * args.dilation_w / args.stride_w;
  const int64_t columns = plan.has_halves ? S::kLanes / 2 : round_up(args.out_width, S::kLanes);
  // The first column of x in a phase begins a cache line, which leaves a gap of up to one before it; the last ones are
  // written as a whole vector, of which the other phase may have one column more.
  const int64_t reached = shifts + larger(columns, args.out_width + S::kLanes);
  plan.phase_floats = round_up(reached + kLineFloats - 1, kLineFloats);
  plan.pitch = plan.phases * plan.phase_floats;
  const int64_t reach = (args.kernel_h - 1) * args.dilation_h + 1;
  const int64_t fitting = (kBandFloats / plan.pitch - reach) / args.stride_h + 1;
  const int64_t parts = parts_of_image(args.threads, args.batch);
  plan.band_rows = balanced(args.out_height, larger(fitting, kMaxLines), parts);
  if (parts == 1 && plan.band_rows < args.out_height) plan.band_rows = round_up(plan.band_rows, kMaxLines);
  plan.bands = divide_up(args.out_height, plan.band_rows);
  plan.rows = (round_up(plan.band_rows, plan.rows_of_line()) - 1) * args.stride_h + reach;
  // What was just stored cannot be loaded at another alignment before it has left the store queue: small planes wait
  // for each other.
  plan.planes = larger(kBandFloats / plan.buffer_floats(), 1);
  return plan;
}

// Columns of a phase in a row of x and in a row of the buffer: buffer[to + i] = x[from + i * stride_w] for i < length.
struct ColumnRun {
  int64_t from, to, length;
};

// What a call works with, in its scratch; of no memory, only the bytes.
struct DepthwiseScratch {
  ColumnRun* runs;  // [phases]
  int32_t* shifts;  // [KW] where in a row of the buffer the columns of that tap begin
  float* buffer;    // [planes, rows, pitch]
  float* sums;      // [band_rows, OW] or null
  int64_t bytes;

  DepthwiseScratch(const DepthwiseArgs& args, const DepthwisePlan& plan, void* memory) {
    uint8_t* const begin = static_cast<uint8_t*>(memory);
    bytes = 0;
    const auto take = [&](int64_t size) {
      uint8_t* const result = begin == nullptr ? nullptr : begin + bytes;
      bytes += round_up(size, 64);
      return static_cast<void*>(result);
    };
    buffer = static_cast<float*>(take(plan.planes * plan.buffer_floats() * int64_t(sizeof(float))));
    runs = static_cast<ColumnRun*>(take(plan.phases * int64_t(sizeof(ColumnRun))));
    shifts = static_cast<int32_t*>(take(args.kernel_w * int64_t(sizeof(int32_t))));
    const bool is_float = args.dtype == Dtype::kFloat32;
    sums = is_float ? nullptr : static_cast<float*>(take(plan.band_rows * args.out_width * int64_t(sizeof(float))));
  }
};

inline void fill_columns(const ConvShape& shape, const DepthwisePlan& plan, DepthwiseScratch& scratch) {
  const int64_t step = shape.stride_w, last_tap = (shape.kernel_w - 1) * shape.dilation_w;
  int64_t count = 0;
  for (int64_t phase = 0; phase < step; ++phase) {
    if (!phase_is_used(phase, step, shape.dilation_w, shape.kernel_w)) continue;
    // Columns of the padded image in this phase: those inside of x, and those that some tap reads.
    const int64_t left = larger(divide_up(shape.padding_w - phase, step), 0);
    const int64_t right = divide_up(shape.width + shape.padding_w - phase, step);
    const int64_t end = smaller(right, shape.out_width + last_tap / step);
    const int64_t begin = count * plan.phase_floats + round_up(left, kLineFloats) - left;
    scratch.runs[count++] = {left * step + phase - shape.padding_w, begin + left, larger(end - left, 0)};
    for (int64_t kw = 0; kw < shape.kernel_w; ++kw) {
      const int64_t column = kw * shape.dilation_w;
      if (column % step == phase) scratch.shifts[kw] = static_cast<int32_t>(begin + column / step);
    }
  }
}

// A rectangle of x and where it goes.
template <class T>
struct Rows {
  const T* src;
  int64_t ld_src;
  int64_t count, length;
};

// dst[r, i] = src[r, i] for i < length, and zeros up to a whole vector.
template <class S, class T>
void copy_rows(Rows<T> rows, float* dst, int64_t ld_dst) {
  const int64_t whole = rows.length / S::kLanes * S::kLanes;
  const int rest = static_cast<int>(rows.length - whole);
  for (int64_t r = 0; r < rows.count; ++r, rows.src += rows.ld_src, dst += ld_dst) {
    for (int64_t i = 0; i < whole; i += S::kLanes) S::store(dst + i, S::load(rows.src + i));
    if (rest > 0) S::store(dst + whole, S::load_n(rows.src + whole, rest));
  }
}

// even[r, i] = src[r, 2 i] and odd[r, i] = src[r, 2 i + 1], and zeros up to a whole vector.
template <class S, class T>
void split_rows(Rows<T> rows, float* even, float* odd, int64_t ld_dst) {
  constexpr int L = S::kLanes;
  const int64_t whole = rows.length / (2 * L) * L;
  const int rest = static_cast<int>(rows.length - 2 * whole);
  const int rest_low = rest < L ? rest : L;
  for (int64_t r = 0; r < rows.count; ++r, rows.src += rows.ld_src, even += ld_dst, odd += ld_dst) {
    for (int64_t i = 0; i < whole; i += L) {
      const auto low = S::load(rows.src + 2 * i), high = S::load(rows.src + 2 * i + L);
      S::store(even + i, S::even(low, high));
      S::store(odd + i, S::odd(low, high));
    }
    if (rest > 0) {
      const T* from = rows.src + 2 * whole;
      const auto low = S::load_n(from, rest_low);
      const auto high = rest > L ? S::load_n(from + L, rest - L) : S::zero();
      S::store(even + whole, S::even(low, high));
      S::store(odd + whole, S::odd(low, high));
    }
  }
}

// Rows of a plane into a buffer, whose padding columns are zero already.
template <class S, class T>
void pack_rows(const ConvShape& shape, const DepthwisePlan& plan, const ColumnRun* runs, Rows<T> rows, float* to) {
  if (shape.stride_w == 1) {
    rows.src += runs[0].from;
    rows.length = runs[0].length;
    copy_rows<S>(rows, to + runs[0].to, plan.pitch);
  } else if (shape.stride_w == 2 && plan.phases == 2) {
    const int first = runs[0].from == 0 ? 0 : 1;  // columns 0, 2, ... of x
    const ColumnRun &even = runs[first], &odd = runs[1 - first];
    rows.length = larger(2 * even.length - 1, 2 * odd.length);
    split_rows<S>(rows, to + even.to, to + odd.to, plan.pitch);
  } else {
    for (int64_t r = 0; r < rows.count; ++r) {
      for (int64_t i = 0; i < plan.phases; ++i) {
        const ColumnRun& run = runs[i];
        copy_strided<S>(rows.src + r * rows.ld_src + run.from, shape.stride_w, to + r * plan.pitch + run.to,
                        run.length);
      }
    }
  }
}

// Rows [first_row, first_row + rows) of a plane into a buffer; those of the padding too if other bands have written
// there.
template <class S, class T>
void pack_band(const ConvShape& shape, const DepthwisePlan& plan, const ColumnRun* runs, const T* plane,
               int64_t first_row, int64_t rows, float* buffer) {
  const int64_t begin = smaller(larger(-first_row, 0), rows);
  const int64_t end = larger(smaller(shape.height - first_row, rows), begin);
  if (plan.bands > 1) {
    fill_zero(buffer, begin * plan.pitch);
    fill_zero(buffer + end * plan.pitch, (rows - end) * plan.pitch);
  }
  if (begin == end) return;
  pack_rows<S, T>(shape, plan, runs, {plane + (first_row + begin) * shape.width, shape.width, end - begin, 0},
                  buffer + begin * plan.pitch);
}

// What the sums of a band need.
struct Band {
  const float* weight;    // [KH, KW] of the channel
  const float* rows;      // the buffer
  const int32_t* shifts;  // [KW]
  float* out;             // [count, OW]
  int64_t count;          // output rows
  float bias;
  bool is_clamped;  // to [0, most]
  float most;
};

// A loaded row in a register. GCC 12 otherwise loads it again inside of every multiply-add that uses it: 24 loads
// instead of 10 for 8 lines of a 3x3 filter.
template <class Vector>
SPARSECORE_INLINE Vector in_register(Vector x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// acc[r] += the filter on line r, of which line 0 begins at `rows`; lines are STEP rows of the buffer apart.
template <class S, int KH, int STEP, int R, bool kHalves>
SPARSECORE_INLINE void multiply_lines(const ConvShape& shape, int64_t pitch, const Band& band, const float* rows,
                                      typename S::F32 (&acc)[R]) {
  const auto multiply_column = [&](int64_t kw, int64_t KW) SPARSECORE_LAMBDA_INLINE {
    typename S::F32 weight[KH];
    SPARSECORE_UNROLL
    for (int kh = 0; kh < KH; ++kh) weight[kh] = S::set1(band.weight[kh * KW + kw]);
    const float* row = rows + band.shifts[kw];
    SPARSECORE_UNROLL
    for (int h = 0; h < (R - 1) * STEP + KH; ++h, row += pitch) {
      typename S::F32 x;
      if constexpr (kHalves) {
        x = S::load_halves(row, row + pitch);
      } else {
        x = in_register(S::load(row));
      }
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) {
        const int kh = h - r * STEP;
        if (kh >= 0 && kh < KH) acc[r] = S::fma(weight[kh], x, acc[r]);
      }
    }
  };
  if (KH == 3 && S::kRegisters >= 32 && shape.kernel_w == 3) {  // the whole filter fits in registers beside the sums
    SPARSECORE_UNROLL
    for (int kw = 0; kw < 3; ++kw) multiply_column(kw, 3);
  } else {
    for (int64_t kw = 0; kw < shape.kernel_w; ++kw) multiply_column(kw, shape.kernel_w);
  }
}

// The same for any filter, stride and dilation.
template <class S, int R>
SPARSECORE_INLINE void multiply_any_lines(const ConvShape& shape, int64_t pitch, const Band& band, const float* rows,
                                          typename S::F32 (&acc)[R]) {
  const int64_t step = shape.stride_h * pitch;
  for (int64_t kh = 0; kh < shape.kernel_h; ++kh) {
    for (int64_t kw = 0; kw < shape.kernel_w; ++kw) {
      const auto weight = S::set1(band.weight[kh * shape.kernel_w + kw]);
      const float* row = rows + kh * shape.dilation_h * pitch + band.shifts[kw];
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r, row += step) acc[r] = S::fma(weight, S::load(row), acc[r]);
    }
  }
}

// R lines of a band's output; KH is 0 for any filter.
template <class S, int KH, int STEP, int R, bool kHalves>
void run_lines(const ConvShape& shape, int64_t pitch, const Band& band, int64_t line) {
  constexpr int L = S::kLanes;
  constexpr int64_t kRows = kHalves ? 2 : 1;
  const int64_t width = shape.out_width;
  const float* rows = band.rows + line * kRows * shape.stride_h * pitch;
  float* out = band.out + line * kRows * width;
  const auto bias = S::set1(band.bias), least = S::zero(), most = S::set1(band.most);
  for (int64_t at = 0; at < width; at += L) {
    typename S::F32 acc[R];
    SPARSECORE_UNROLL
    for (int r = 0; r < R; ++r) acc[r] = bias;
    if constexpr (KH == 0) {
      multiply_any_lines<S, R>(shape, pitch, band, rows + at, acc);
    } else {
      multiply_lines<S, KH, STEP, R, kHalves>(shape, pitch, band, rows + at, acc);
    }
    if (band.is_clamped) {
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) acc[r] = S::min(most, S::max(least, acc[r]));
    }
    if constexpr (kHalves) {
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) {
        const int64_t left = (band.count - (line + r) * kRows) * width;
        const auto joined = S::join_halves(acc[r], static_cast<int>(width));
        S::store_n(out + r * kRows * width, joined, static_cast<int>(smaller(kRows * width, left)));
      }
    } else if (at + L <= width) {
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) S::store(out + r * width + at, acc[r]);
    } else {
      SPARSECORE_UNROLL
      for (int r = 0; r < R; ++r) S::store_n(out + r * width + at, acc[r], static_cast<int>(width - at));
    }
  }
}

template <class S, int KH, int STEP, bool kHalves>
void run_band(const ConvShape& shape, int64_t pitch, const Band& band) {
  constexpr int kMost = kLines<S, KH>;
  const int64_t lines = divide_up(band.count, kHalves ? 2 : 1);
  const int64_t at_once = balanced_vectors(lines, kMost);
  for (int64_t line = 0; line < lines; line += at_once) {
    with_vectors<kMost>(static_cast<int>(smaller(at_once, lines - line)), [&](auto count) SPARSECORE_LAMBDA_INLINE {
      run_lines<S, KH, STEP, decltype(count)::value, kHalves>(shape, pitch, band, line);
    });
  }
}

template <class S, int KH>
void run_unrolled_band(const ConvShape& shape, const DepthwisePlan& plan, const Band& band) {
  if constexpr (kHasHalves<S>) {
    if (plan.has_halves) return run_band<S, KH, 2, true>(shape, plan.pitch, band);
  }
  if (shape.stride_h == 1) return run_band<S, KH, 1, false>(shape, plan.pitch, band);
  run_band<S, KH, 2, false>(shape, plan.pitch, band);
}

// The sums of a band, clamped.
template <class S>
void run_any_band(const ConvShape& shape, const DepthwisePlan& plan, const Band& band) {
  if (!is_unrolled(shape)) return run_band<S, 0, 0, false>(shape, plan.pitch, band);
  if (shape.kernel_h == 3) return run_unrolled_band<S, 3>(shape, plan, band);
  if (shape.kernel_h == 5) return run_unrolled_band<S, 5>(shape, plan, band);
  run_unrolled_band<S, 7>(shape, plan, band);
}

// y[i] = activation(sums[i] + residual[i]) for i < n; sums may be y.
template <class S, class T>
void finish_numbers(const float* sums, const T* residual, Activation activation, T* y, int64_t n) {
  constexpr int L = S::kLanes, V = 4;  // vectors that hide each other's waits
  int64_t i = 0;
  for (; i + V * L <= n; i += V * L) {
    typename S::F32 acc[V];
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) acc[j] = S::load(sums + i + j * L);
    if (residual != nullptr) {
      SPARSECORE_UNROLL
      for (int j = 0; j < V; ++j) acc[j] = S::add(acc[j], S::load(residual + i + j * L));
    }
    activate<S, V>(acc, activation);
    SPARSECORE_UNROLL
    for (int j = 0; j < V; ++j) S::store(y + i + j * L, acc[j]);
  }
  for (; i < n; i += L) {
    const int count = static_cast<int>(smaller(n - i, L));
    typename S::F32 acc[1] = {S::load_n(sums + i, count)};
    if (residual != nullptr) acc[0] = S::add(acc[0], S::load_n(residual + i, count));
    activate<S, 1>(acc, activation);
    S::store_n(y + i, acc[0], count);
  }
}

template <class S>
struct DepthwiseF32 {
  static bool supports(const DepthwiseArgs&) { return true; }

  static int64_t num_tiles(const DepthwiseArgs& args) {
    if (args.batch == 0 || args.out_height == 0 || args.out_width == 0) return 0;
    return args.batch * make_depthwise_plan<S>(args).bands;
  }

  static int64_t scratch_bytes(const DepthwiseArgs& args) {
    return DepthwiseScratch(args, make_depthwise_plan<S>(args), nullptr).bytes;
  }

  static void run(const DepthwiseArgs& args, Range channels, Range tiles, void* memory) {
    const DepthwisePlan plan = make_depthwise_plan<S>(args);
    DepthwiseScratch scratch(args, plan, memory);
    fill_columns(args, plan, scratch);
    fill_zero(scratch.buffer, plan.planes * plan.buffer_floats());
    with_dtype(args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const int64_t total = channels.size() * tiles.size();
      for (int64_t begin = 0; begin < total; begin += plan.planes) {
        const int64_t count = smaller(plan.planes, total - begin);
        for (int64_t i = 0; i < count; ++i) {
          const Place place(plan, channels, tiles, begin + i);
          pack_place<T>(args, plan, scratch, place, scratch.buffer + i * plan.buffer_floats());
        }
        for (int64_t i = 0; i < count; ++i) {
          const Place place(plan, channels, tiles, begin + i);
          run_place<T>(args, plan, scratch, place, scratch.buffer + i * plan.buffer_floats());
        }
      }
    });
  }

 private:
  // Band i of those of a call, which go through a channel's tiles before the next channel.
  struct Place {
    int64_t n, image, first_row;

    Place(const DepthwisePlan& plan, Range channels, Range tiles, int64_t i) {
      n = channels.begin + i / tiles.size();
      const int64_t tile = tiles.begin + i % tiles.size();
      image = tile / plan.bands;
      first_row = tile % plan.bands * plan.band_rows;
    }
    int64_t rows(const DepthwiseArgs& args, const DepthwisePlan& plan) const {
      return smaller(plan.band_rows, args.out_height - first_row);
    }
  };

  template <class T>
  static void pack_place(const DepthwiseArgs& args, const DepthwisePlan& plan, const DepthwiseScratch& scratch,
                         Place place, float* buffer) {
    const int64_t channel = place.image * args.channels + place.n / args.multiplier;
    const T* plane = static_cast<const T*>(args.x) + channel * args.height * args.width;
    const int64_t reach = (args.kernel_h - 1) * args.dilation_h + 1;
    pack_band<S>(args, plan, scratch.runs, plane, place.first_row * args.stride_h - args.padding_h,
                 (place.rows(args, plan) - 1) * args.stride_h + reach, buffer);
  }

  template <class T>
  static void run_place(const DepthwiseArgs& args, const DepthwisePlan& plan, const DepthwiseScratch& scratch,
                        Place place, const float* buffer) {
    const int64_t n = place.n, N = args.channels * args.multiplier, count = place.rows(args, plan);
    const int64_t begin = ((place.image * N + n) * args.out_height + place.first_row) * args.out_width;
    T* y = static_cast<T*>(args.y) + begin;
    const T* residual = args.residual == nullptr ? nullptr : static_cast<const T*>(args.residual) + begin;
    float* sums = sums_of(y, scratch);
    const Activation activation = args.epilogue.activation;
    // Activations that clamp are part of the sums, unless a residual comes before them.
    const bool clamps = residual == nullptr && (activation == Activation::kRelu || activation == Activation::kRelu6);
    const float most = activation == Activation::kRelu6 ? 6.0f : __builtin_inff();
    run_any_band<S>(args, plan,
                    {args.weight + n * args.kernel_h * args.kernel_w, buffer, scratch.shifts, sums, count,
                     args.epilogue.bias_of(n), clamps, most});
    const bool is_finished = clamps || (residual == nullptr && activation == Activation::kNone);
    if (is_finished && static_cast<void*>(sums) == static_cast<void*>(y)) return;
    finish_numbers<S>(sums, residual, is_finished ? Activation::kNone : activation, y, count * args.out_width);
  }

  // Where the sums of a band go: float32 outputs are their own.
  static float* sums_of(float* y, const DepthwiseScratch&) { return y; }
  template <class T>
  static float* sums_of(T*, const DepthwiseScratch& scratch) {
    return scratch.sums;
  }
};

}  // namespace
}  // namespace sparsecore
