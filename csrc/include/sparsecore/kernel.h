// The one shape of a kernel table, and what all operations share.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "sparsecore/isa.h"
#include "sparsecore/views.h"

namespace sparsecore {

enum class Activation { kNone, kRelu, kRelu6, kGelu, kSilu, kHardswish, kSigmoid, kHardsigmoid };

// y = activation(y + bias), applied while the result is still in registers.
//   relu6 = min(max(y, 0), 6); gelu = y/2 (1 + erf(y/sqrt 2)); silu = y / (1 + exp(-y));
//   hardswish = y * relu6(y + 3) / 6; sigmoid = 1 / (1 + exp(-y)); hardsigmoid = relu6(y + 3) / 6.
//   NaN stays NaN in all of them.
// Error added over the exact function of y, the sum with bias: gelu and silu 4e-7 |y|, hardswish 2^-22 |y|; sigmoid
// 4e-7 and hardsigmoid 2^-22 of the result, sigmoid 2e-38 beside (it does not fall below exp(-87)); the others none.
struct Epilogue {
  const float* bias = nullptr;  // [N], or null
  Activation activation = Activation::kNone;

  float bias_of(int64_t row) const { return bias == nullptr ? 0.0f : bias[row]; }
};

// A kernel computes rows x tiles of the output on the calling thread, owns no memory and creates no thread.
//
// The output of an operation is a matrix of N rows (output features) by columns (activations); a kernel cuts the
// columns into tiles of a width of its own choice. Any split of [0, N) x [0, tiles) over calls and threads gives
// bit-identical results.
template <class Args>
struct Kernel {
  const char* name;
  Isa isa;
  bool (*supports)(const Args& args);
  int64_t (*num_tiles)(const Args& args);
  int64_t (*scratch_bytes)(const Args& args);  // for one call of run, 64-byte aligned
  void (*run)(const Args& args, Range rows, Range tiles, void* scratch);
};

// A table row from a struct with these four as static functions.
template <class Functions, class Args>
constexpr Kernel<Args> make_kernel(const char* name, Isa isa) {
  return {name, isa, Functions::supports, Functions::num_tiles, Functions::scratch_bytes, Functions::run};
}

// The first enabled kernel of a table that supports the arguments, else the last, scalar: what that one does not
// support the operation's contract excludes.
template <class Args>
const Kernel<Args>& select_kernel(std::span<const Kernel<Args>> table, const Args& args) {
  for (const Kernel<Args>& kernel : table) {
    if (isa_enabled(kernel.isa) && kernel.supports(args)) return kernel;
  }
  return table.back();
}

// The kernel of that name if it is enabled and supports the arguments, else null.
template <class Args>
const Kernel<Args>* find_kernel(std::span<const Kernel<Args>> table, std::string_view name, const Args& args) {
  for (const Kernel<Args>& kernel : table) {
    if (name == kernel.name && isa_enabled(kernel.isa) && kernel.supports(args)) return &kernel;
  }
  return nullptr;
}

}  // namespace sparsecore
