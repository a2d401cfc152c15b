#include "cuda/spmm_delta.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {
namespace {

// Warps walk over units in strides of 32 bits.
constexpr int64_t kMaxExpandBlocks = 1 << 16;

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

const char* expand_delta(const DeltaArrays& weight, Dtype dtype, void* dense, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int64_t units = delta_panels(weight.cols) * weight.rows;
  if (units == 0) return nullptr;
  cudaMemsetAsync(dense, 0, static_cast<size_t>(weight.rows * weight.cols) * sizeof(uint16_t), cuda_stream);
  const int64_t blocks = std::min<int64_t>(divide_up(units, kDeltaThreads / kWarp), kMaxExpandBlocks);
  with_16_bits(dtype, [&](auto number) {
    using X = decltype(number);
    const auto expand = weight.scale == nullptr ? delta_expand<X, DeltaValues16<X>> : delta_expand<X, DeltaValues8>;
    expand<<<grid_of(blocks, 1), kDeltaThreads, 0, cuda_stream>>>(weight, static_cast<uint16_t*>(dense));
  });
  return launch_error();
}

}  // namespace sparsecore::cuda
