// How spmm and conv2d run a JitView: algorithm text, include after a wrapper that defines Simd.
//
// A tile is a number of vectors of columns, what the code takes at once, kLanes of them; its activations lie as the
// form of the code wants it. The sums of a group of blocks are [row of the group][columns of the tile].
//
// The blocks of a group run over one panel of one vector while its activations are in first-level cache, then over the
// next vector while their code is still decoded. Measured on Zen 4, [768, 768] x 128 in a loop, share of FMA peak: 87%
// at 70% zeros, 76% at 90%, against 65 and 51% of the panel kernel.
#pragma once

#include "kernels/spmm/activation_tile.h"
#include "sparsecore/jit.h"

namespace sparsecore {
namespace {

// Fewer vectors would use the code too rarely, more would not gain.
constexpr int64_t kMinJitVectors = 4, kMaxJitVectors = 16;

// Vectors of a tile, for so many in all and at most so many that second-level cache holds beside code and values.
SPARSECORE_INLINE int64_t jit_tile_vectors(int64_t vectors, int64_t cached, int64_t parts) {
  return balanced(vectors, smaller(larger(cached, kMinJitVectors), kMaxJitVectors), parts);
}

SPARSECORE_INLINE int64_t jit_sums_floats(const JitView& weight) {
  return weight.group_blocks * weight.block_rows * JitView::kSumsStride;
}

// Asks for what runs next, a part with every step: code is read once and then repeated, and what reads instructions
// does not look that far ahead. Measured on Zen 4, [3072, 768] x 128 at 70% zeros, whose code and values take 8.5 MB: 4
// to 20% faster with 32 MB read in between, up to 6% slower where they are in second-level cache.
class JitAhead {
 public:
  // What the segments [begin, end) read, in `steps` parts.
  JitAhead(const JitView& weight, int64_t begin, int64_t end, int64_t steps)
      : code_{weight.code + weight.code_ptr[begin], weight.code + weight.code_ptr[end]},
        values_{reinterpret_cast<const uint8_t*>(weight.values + weight.entry_ptr[begin]),
                reinterpret_cast<const uint8_t*>(weight.values + weight.entry_ptr[end])},
        code_step_(divide_up(code_.end - code_.at, steps)),
        value_step_(divide_up(values_.end - values_.at, steps)) {}

  SPARSECORE_INLINE void step() {
    code_.fetch(code_step_);
    values_.fetch(value_step_);
  }

 private:
  struct Stretch {
    const uint8_t* at;
    const uint8_t* end;
    SPARSECORE_INLINE void fetch(int64_t bytes) {
      const uint8_t* stop = end - at < bytes ? end : at + bytes;
      for (; at < stop; at += kLineBytes) __builtin_prefetch(at, 0, 2);
    }
  };
  Stretch code_, values_;
  int64_t code_step_, value_step_;
};

// A residual and a bias that change nothing.
alignas(kLineBytes) constexpr float kAddNothing[2 * kLineFloats] = {
    -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f,
    -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f};

// Outputs that are the sums, in their places.
SPARSECORE_INLINE JitOutputs jit_sums_as_outputs(float* sums) {
  JitOutputs outputs;
  outputs.residual = reinterpret_cast<const uint8_t*>(kAddNothing);
  outputs.y = reinterpret_cast<uint8_t*>(sums);
  outputs.y_stride = JitView::kSumsStride * int64_t(sizeof(float));
  outputs.bias = kAddNothing;
  return outputs;
}

// x_of(vector, panel) is what the code takes as x; will_write(rows, vector) comes some time before those outputs are
// written; outputs_of(rows, vector, their sums) says where, for code that writes outputs.
template <class XOf, class WillWrite, class OutputsOf>
SPARSECORE_INLINE void run_jit_group(const JitView& weight, Range group, Range blocks, int64_t T, float* sums, XOf x_of,
                                     WillWrite will_write, OutputsOf outputs_of) {
  const int64_t block_floats = weight.block_rows * JitView::kSumsStride;
  const int64_t num_panels = weight.num_panels();
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t first = weight.segment_of(group, panel), next = first + group.size();
    JitAhead ahead(weight, next, smaller(next + group.size(), weight.num_segments()), T * blocks.size());
    for (int64_t v = 0; v < T; ++v) {
      const void* x = x_of(v, panel);
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        ahead.step();
        float* to = sums + (block - blocks.begin) * block_floats + v * JitView::kLanes;
        JitOutputs outputs;
        if (panel + 1 == num_panels) {
          const Range n = weight.rows_of({block, block + 1});
          will_write(n, v);
          if (weight.writes_outputs()) outputs = outputs_of(n, v, to);
        }
        const int64_t segment = first + block - group.begin;
        const auto code = reinterpret_cast<JitView::Code>(weight.code + weight.code_ptr[segment]);
        code(weight.values + weight.entry_ptr[segment], x, to, &outputs);
      }
    }
  }
}

// Calls finish(rows, their sums) for groups of rows, whose outputs will_write() was told of before.
template <class XOf, class WillWrite, class OutputsOf, class Finish>
SPARSECORE_INLINE void run_jit_tile(const JitView& weight, Range blocks, int64_t T, float* sums, XOf x_of,
                                    WillWrite will_write, OutputsOf outputs_of, Finish finish) {
  for (int64_t begin = blocks.begin; begin < blocks.end;) {
    const Range group = weight.group_of(begin), part{begin, smaller(group.end, blocks.end)};
    run_jit_group(weight, group, part, T, sums, x_of, will_write, outputs_of);
    finish(weight.rows_of(part), sums);
    begin = part.end;
  }
}

// y[0 .. length) from the sums of a row and what comes after them.
template <class S, class T>
SPARSECORE_INLINE void finish_jit_part(const Epilogue& epilogue, int64_t row, const float* sums, const T* residual,
                                       T* y, int64_t length) {
  constexpr int L = S::kLanes;
  const float bias = epilogue.bias_of(row);
  for (int64_t i = 0; i < length; i += L) {
    const bool is_whole = i + L <= length;
    const int count = is_whole ? L : static_cast<int>(length - i);
    typename S::F32 acc[1] = {is_whole ? S::load(sums + i) : S::load_n(sums + i, count)};
    if (residual != nullptr) {
      acc[0] = S::add(acc[0], is_whole ? S::load(residual + i) : S::load_n(residual + i, count));
    }
    apply_epilogue<S, 1>(acc, bias, epilogue.activation);
    if (is_whole) {
      S::store(y + i, acc[0]);
    } else {
      S::store_n(y + i, acc[0], count);
    }
  }
}

// Finished rows n to y, where each of them is made of parts: for_each_part(row, function(offset in y, column of the
// tile, length)).
template <class S, class Args, class Parts>
SPARSECORE_INLINE void finish_jit_rows(const Args& args, Range n, const float* sums, Parts for_each_part) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    T* y = static_cast<T*>(args.y);
    const T* residual = static_cast<const T*>(args.residual);
    for (int64_t row = n.begin; row < n.end; ++row, sums += JitView::kSumsStride) {
      for_each_part(row, [&](int64_t at, int64_t column, int64_t length) SPARSECORE_LAMBDA_INLINE {
        finish_jit_part<S>(args.epilogue, row, sums + column, residual == nullptr ? nullptr : residual + at, y + at,
                           length);
      });
    }
  });
}

// Asks for rows n of y at that offset and of the residual; a cache line each.
template <class Args>
SPARSECORE_INLINE void fetch_jit_outputs(const Args& args, Range n, int64_t offset, int64_t row_stride) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    for (int64_t row = n.begin; row < n.end; ++row) {
      const int64_t at = offset + row * row_stride;
      __builtin_prefetch(static_cast<const T*>(args.y) + at, 1);
      if (args.residual != nullptr) __builtin_prefetch(static_cast<const T*>(args.residual) + at, 0);
    }
  });
}

}  // namespace
}  // namespace sparsecore
