#include "cuda/spmm_delta.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {
namespace {

// One panel's sums go straight to y.
bool has_partial(const DeltaArrays& weight) { return delta_panels(weight.cols) != 1; }

template <class X, class Values, int kTokens>
const char* launch(const DeltaArrays& weight, const void* x, int64_t M, float* partial, const SpmmOutput& out,
                   cudaStream_t stream) {
  const int64_t token_blocks = divide_up(M, kTokens);
  if (token_blocks > kMaxGridY) return "too many rows of x; use a dense weight";
  const auto multiply = spmm_delta_multiply<X, Values, kTokens>;
  const int shared = delta_shared_bytes(weight.cols, kTokens);
  if (shared > device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return "this GPU has too little shared memory";
  cudaFuncSetAttribute(multiply, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  multiply<<<grid_of(weight.num_blocks, token_blocks), kDeltaThreads, shared, stream>>>(
      weight, static_cast<const uint16_t*>(x), M, has_partial(weight) ? partial : nullptr, out);
  if (has_partial(weight)) {
    spmm_delta_finish<X>
        <<<grid_of(divide_up(M * weight.rows, kDeltaThreads), 1), kDeltaThreads, 0, stream>>>(weight, M, partial, out);
  }
  return launch_error();
}

template <class X, class Values>
const char* choose_tokens(const DeltaArrays& weight, const void* x, int64_t M, float* partial, const SpmmOutput& out,
                          cudaStream_t stream) {
  const auto run = M == 1   ? launch<X, Values, 1>
                   : M == 2 ? launch<X, Values, 2>
                   : M <= 4 ? launch<X, Values, 4>
                            : launch<X, Values, kDeltaTokens>;
  return run(weight, x, M, partial, out, stream);
}

}  // namespace

int64_t spmm_delta_floats(const DeltaArrays& weight, int64_t M) {
  return has_partial(weight) ? delta_panels(weight.cols) * M * weight.rows : 0;
}

const char* spmm_delta(const DeltaArrays& weight, Dtype dtype, const void* x, int64_t M, float* partial,
                       const SpmmOutput& out, Stream stream) {
  const char* problem = nullptr;
  with_16_bits(dtype, [&](auto number) {
    using X = decltype(number);
    const auto run = weight.scale == nullptr ? choose_tokens<X, DeltaValues16<X>> : choose_tokens<X, DeltaValues8>;
    problem = run(weight, x, M, partial, out, static_cast<cudaStream_t>(stream));
  });
  return problem;
}

}  // namespace sparsecore::cuda
