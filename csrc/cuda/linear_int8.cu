#include "cuda/linear_int8.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {
namespace {

template <class X, int kTokenTiles>
const char* launch(const Int8Arrays& weight, const Int8Activations& x, const Int8Output& out, cudaStream_t stream) {
  constexpr int kTokens = kInt8Tokens * kTokenTiles;
  const int64_t token_blocks = divide_up(x.M, kTokens);
  if (token_blocks > kMaxGridY) return "too many rows of x";
  const bool is_aligned = weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(x.x) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(weight.values) % 16 == 0;
  const int shared = kInt8Threads / kWarp * kInt8Rows * kTokens * int(sizeof(int32_t));
  linear_int8_rows<X, kTokenTiles>
      <<<grid_of(divide_up(weight.rows, kInt8Rows), token_blocks), kInt8Threads, shared, stream>>>(weight, x,
                                                                                                   is_aligned, out);
  return launch_error();
}

}  // namespace

const char* linear_int8(const Int8Arrays& weight, const Int8Activations& x, const Int8Output& out, Stream stream) {
  const char* problem = nullptr;
  with_output(out, [&](auto number) {
    using X = decltype(number);
    const auto run = x.M <= kInt8Tokens ? launch<X, 1> : x.M <= 2 * kInt8Tokens ? launch<X, 2> : launch<X, 4>;
    problem = run(weight, x, out, static_cast<cudaStream_t>(stream));
  });
  return problem;
}

}  // namespace sparsecore::cuda
