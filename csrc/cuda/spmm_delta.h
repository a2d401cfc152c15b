// y[M, N] = x[M, K] W^T for few rows of x, W in the delta format: work and bytes in proportion to what is stored, on
// CUDA cores with float32 sums. The algorithm text of spmm_delta.cu.
//
//   multiply  a block takes a range of units (rows of panels) of about equal work. It stages a panel's activations in
//             shared memory, a column's tokens together; then a warp takes a unit at a time, 128 codes in a step, and
//             each lane sums the products of its four. Sums go to y, or to `partial` if there are several panels
//   finish    adds the panels in their order, then scale, bias, activation
//
// Sums do not depend on timing. A missing entry is not multiplied with: it adds nothing, whatever x holds. Arrays were
// validated when they were packed; what they hold by now is not trusted: codes that leave a panel are skipped.
#pragma once

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"
#include "pack/delta_layout.h"

namespace sparsecore::cuda {

inline constexpr int kDeltaThreads = 256;
// Most rows of x for one reading of W: with more, sums take the registers that hide latency.
inline constexpr int kDeltaTokens = 8;

// Staged activations: columns of a panel and one of zeros, which stands for missing entries.
SPARSECORE_HOST_DEVICE int delta_shared_bytes(int64_t cols, int tokens) {
  return static_cast<int>(delta_panel_cols(cols, 0) + 1) * tokens * int(sizeof(uint16_t));
}

// Four values of 16 bits, or of 8 without their scale.
template <class NumberType>
struct DeltaValues16 {
  using Quad = uint2;
  static SPARSECORE_DEVICE Quad load_quad(const void* values, int64_t quad) {
    return load_pair(static_cast<const uint16_t*>(values) + quad * kDeltaQuad);
  }
  static SPARSECORE_DEVICE float widen(const Quad& quad, int e) {
    return NumberType::widen(static_cast<uint16_t>((e < 2 ? quad.x : quad.y) >> e % 2 * 16));
  }
};
struct DeltaValues8 {
  using Quad = uint32_t;
  static SPARSECORE_DEVICE Quad load_quad(const void* values, int64_t quad) {
    return load(static_cast<const uint32_t*>(values) + quad);
  }
  static SPARSECORE_DEVICE float widen(const Quad& quad, int e) {
    return static_cast<float>(static_cast<int8_t>(quad >> 8 * e));
  }
};

// Numbers of 16 bits of kTokens rows of x in one column.
template <int kTokens>
struct ColumnTokens {
  uint32_t words[kTokens == 1 ? 1 : kTokens / 2];

  SPARSECORE_DEVICE uint16_t operator[](int t) const { return static_cast<uint16_t>(words[t / 2] >> t % 2 * 16); }

  // From the staged activations at a shared address.
  static SPARSECORE_DEVICE ColumnTokens read(uint32_t address) {
    if constexpr (kTokens == 1) {
      return {read_shared_16(address)};
    } else if constexpr (kTokens == 2) {
      return {read_shared_32(address)};
    } else if constexpr (kTokens == 4) {
      const uint2 pair = read_shared_64(address);
      return {pair.x, pair.y};
    } else {
      const uint4 four = read_shared_128(address);
      return {four.x, four.y, four.z, four.w};
    }
  }
};

// Rows first .. of x at columns begin .. begin + cols to shared memory, a column's tokens together, and a column of
// zeros behind them.
template <int kTokens>
SPARSECORE_DEVICE void stage_panel(const uint16_t* x, int64_t first, int64_t M, int64_t K, int64_t begin, int cols,
                                   uint16_t* staged) {
  auto* to = reinterpret_cast<ColumnTokens<kTokens>*>(staged);
  for (int col = thread_index(); col <= cols; col += block_threads()) {
    uint32_t numbers[kTokens] = {};
    SPARSECORE_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      if (col < cols && first + t < M) numbers[t] = load(x + (first + t) * K + begin + col);
    }
    if constexpr (kTokens == 1) {
      staged[col] = static_cast<uint16_t>(numbers[0]);
    } else {
      ColumnTokens<kTokens> column;
      SPARSECORE_UNROLL
      for (int t = 0; t < kTokens; t += 2) column.words[t / 2] = numbers[t] | numbers[t + 1] << 16;
      to[col] = column;
    }
  }
}

// The steps of a warp: 32 quads of a unit at a time, one to a lane; a unit without quads is one step.
template <class Values>
class DeltaSteps {
 public:
  struct Quads {
    uint32_t codes;
    typename Values::Quad values;
  };

  // Units first, first + stride, .. below last.
  SPARSECORE_DEVICE DeltaSteps(const DeltaArrays& weight, int64_t first, int64_t last, int stride)
      : weight_(weight), unit_(first), last_(last), stride_(stride), now_(extent_of(first)) {
    next_ = extent_of(unit_ + stride_);
  }

  SPARSECORE_DEVICE bool is_over() const { return unit_ >= last_; }
  SPARSECORE_DEVICE int64_t unit() const { return unit_; }
  SPARSECORE_DEVICE bool ends_unit() const { return now_.end - now_.begin <= kWarp; }

  SPARSECORE_DEVICE void advance() {
    if (!ends_unit()) {
      now_.begin += kWarp;
      return;
    }
    unit_ += stride_;
    now_ = next_;
    next_ = extent_of(unit_ + stride_);  // now, so that it is there when this unit is done
  }

  // This lane's quad of the step: codes without entries where there is none.
  SPARSECORE_DEVICE Quads load_quads() const {
    const int64_t quad = now_.begin + thread_index() % kWarp;
    if (quad >= now_.end) return {0xffffffffu, {}};
    return {load(reinterpret_cast<const uint32_t*>(weight_.codes) + quad), Values::load_quad(weight_.values, quad)};
  }

 private:
  struct Extent {
    int64_t begin, end;
  };
  // Inside the arrays, whatever quad_ptr says.
  SPARSECORE_DEVICE Extent extent_of(int64_t unit) const {
    if (unit >= last_) return {0, 0};
    return {clamp_index(load(weight_.quad_ptr + unit), weight_.quads),
            clamp_index(load(weight_.quad_ptr + unit + 1), weight_.quads)};
  }

  const DeltaArrays& weight_;
  int64_t unit_, last_;
  int stride_;
  Extent now_, next_;
};

// The sum of a unit's codes before this lane's in a step. column: that before the step; becomes that after it.
SPARSECORE_DEVICE uint32_t sum_before(uint32_t codes, uint32_t& column) {  // warp
  const int lane = thread_index() % kWarp;
  const uint32_t own = sum_bytes(codes);
  uint32_t after = own;
  SPARSECORE_UNROLL
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t up = shuffle_up(after, step);
    if (lane >= step) after += up;
  }
  const uint32_t before = column + after - own;
  column += shuffle(after, kWarp - 1);
  return before;
}

// Adds the products of a step to sums.
template <class X, class Values, int kTokens>
SPARSECORE_DEVICE void multiply_step(const typename DeltaSteps<Values>::Quads& quads, uint32_t& column, uint32_t staged,
                                     uint32_t zeros, float (&sums)[kTokens]) {  // warp
  uint32_t at = sum_before(quads.codes, column);
  SPARSECORE_UNROLL
  for (int e = 0; e < kDeltaQuad; ++e) {
    const uint32_t code = quads.codes >> 8 * e & 255;
    at += code;
    const uint32_t from = code == kDeltaSkip || at > zeros ? zeros : at;
    const auto tokens = ColumnTokens<kTokens>::read(staged + from * uint32_t(sizeof(uint16_t)) * kTokens);
    const float value = Values::widen(quads.values, e);
    SPARSECORE_UNROLL
    for (int t = 0; t < kTokens; ++t) sums[t] = fmaf(value, X::widen(tokens[t]), sums[t]);
  }
}

// block_x: range of units; block_y: kTokens rows of x.
template <class X, class Values, int kTokens>
SPARSECORE_KERNEL(kDeltaThreads, kTokens == 8 ? 3 : 4)
spmm_delta_multiply(DeltaArrays weight, const uint16_t* x, int64_t M, float* partial, SpmmOutput out) {
  const int64_t units = delta_panels(weight.cols) * weight.rows;
  const int64_t begin = clamp_index(load(weight.block_ptr + block_x()), units);
  const int64_t end = clamp_index(load(weight.block_ptr + block_x() + 1), units);
  if (begin >= end) return;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp, warps = block_threads() / kWarp;
  const int64_t first_token = block_y() * kTokens;
  auto* staged = reinterpret_cast<uint16_t*>(shared_memory());
  for (int64_t panel = begin / weight.rows; panel * weight.rows < end; ++panel) {
    const auto cols = static_cast<int>(delta_panel_cols(weight.cols, panel));
    sync_block();  // the panel before this one is done
    stage_panel<kTokens>(x, first_token, M, weight.cols, panel * kDeltaPanel, cols, staged);
    sync_block();
    const int64_t panel_end = (panel + 1) * weight.rows, panel_begin = panel * weight.rows;
    DeltaSteps<Values> steps(weight, (begin > panel_begin ? begin : panel_begin) + warp,
                             end < panel_end ? end : panel_end, warps);
    auto quads = steps.load_quads();
    uint32_t column = 0;
    float sums[kTokens] = {};
    while (!steps.is_over()) {
      const int64_t row = steps.unit() - panel_begin;
      const bool ends_unit = steps.ends_unit();
      steps.advance();
      const auto ahead = steps.load_quads();
      multiply_step<X, Values>(quads, column, shared_address(staged), static_cast<uint32_t>(cols), sums);
      quads = ahead;
      if (!ends_unit) continue;
      SPARSECORE_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const float sum = warp_sum(sums[t]);
        const int64_t token = first_token + t;
        sums[t] = 0.0f;
        if (lane != t || token >= M) continue;
        if (partial != nullptr) {
          partial[(panel * M + token) * weight.rows + row] = sum;
        } else {
          store<X>(out, weight.scale, row, token * weight.rows + row, sum);
        }
      }
      column = 0;
    }
  }
}

// Writes what is stored to dense[N, K], which holds zeros, rounded to X.
template <class X, class Values>
SPARSECORE_KERNEL(kDeltaThreads, 4)
delta_expand(DeltaArrays weight, uint16_t* dense) {
  const int warps = block_threads() / kWarp;
  DeltaSteps<Values> steps(weight, block_x() * warps + thread_index() / kWarp, delta_panels(weight.cols) * weight.rows,
                           static_cast<int>(grid_x()) * warps);
  uint32_t column = 0;
  while (!steps.is_over()) {
    const int64_t panel = steps.unit() / weight.rows, row = steps.unit() % weight.rows;
    const auto quads = steps.load_quads();
    uint16_t* to = dense + row * weight.cols + panel * kDeltaPanel;
    const float scale = weight.scale == nullptr ? 1.0f : load(weight.scale + row);
    uint32_t at = sum_before(quads.codes, column);
    SPARSECORE_UNROLL
    for (int e = 0; e < kDeltaQuad; ++e) {
      const uint32_t code = quads.codes >> 8 * e & 255;
      at += code;
      if (code == kDeltaSkip || at >= delta_panel_cols(weight.cols, panel)) continue;
      to[at] = X::narrow(scale * Values::widen(quads.values, e));
    }
    if (steps.ends_unit()) column = 0;
    steps.advance();
  }
}

template <class X>
SPARSECORE_KERNEL(kDeltaThreads, 4)
spmm_delta_finish(DeltaArrays weight, int64_t M, const float* partial, SpmmOutput out) {
  const int64_t panels = delta_panels(weight.cols), size = M * weight.rows;
  for (int64_t at = block_x() * block_threads() + thread_index(); at < size; at += grid_x() * block_threads()) {
    float sum = 0.0f;
    for (int64_t panel = 0; panel < panels; ++panel) sum += partial[panel * size + at];
    store<X>(out, weight.scale, at % weight.rows, at, sum);
  }
}

}  // namespace sparsecore::cuda
