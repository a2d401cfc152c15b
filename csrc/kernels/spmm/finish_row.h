// From sums to y in the rows layout, for kernels whose lanes are output rows. Include after a wrapper that defines
// Simd.
#pragma once

#include "kernels/copy.h"
#include "simd/activation.h"
#include "sparsecore/kernel.h"

namespace sparsecore {
namespace {

// Rows n of y for row m of x: the sums, whole vectors of them, and what comes after.
template <class S, class Args>
void finish_row(const Args& args, int64_t m, Range n, const float* sums) {
  with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
    using T = typename decltype(tag)::type;
    const T* residual = static_cast<const T*>(args.residual);
    T* y = static_cast<T*>(args.y) + m * args.ldy;
    for (int64_t i = n.begin; i < n.end; i += S::kLanes) {
      const int count = static_cast<int>(smaller(n.end - i, S::kLanes));
      typename S::F32 acc[1] = {S::load(sums + (i - n.begin))};
      if (args.epilogue.bias != nullptr) acc[0] = S::add(acc[0], S::load_n(args.epilogue.bias + i, count));
      if (residual != nullptr) acc[0] = S::add(acc[0], S::load_n(residual + m * args.ldy + i, count));
      apply_epilogue<S, 1>(acc, 0.0f, args.epilogue.activation);
      S::store_n(y + i, acc[0], count);
    }
  });
}

}  // namespace
}  // namespace sparsecore
