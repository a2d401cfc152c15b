#include "cuda/spmm_fragment.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {
namespace {

// Token tiles of a block, for M rows of x: more of them read W less often, fewer leave room for more warps.
int token_tiles(int64_t M) { return M <= kTokenTile ? 1 : M <= 2 * kTokenTile ? 2 : 4; }

template <class Number, class Function>
void with_values(int value_bits, Function function) {
  if (value_bits == 16) return function(Values16<Number>{});
  if (value_bits == 8) return function(Values8<Number>{});
  function(Values4<Number>{});
}

template <class Values, int kTokenTiles, bool kBulk>
const char* launch(const FragmentArrays& weight, const void* x, int64_t M, float* partial, const SpmmOutput& out,
                   cudaStream_t stream) {
  using Number = typename Values::Number;
  const auto decode = spmm_fragment_decode<Values, kTokenTiles, kBulk>;
  const int64_t token_blocks = divide_up(M, kTokenTile * kTokenTiles);
  if (token_blocks > kMaxGridY) return "too many rows of x; expand the weight";
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  FragmentShared shared{kFragmentThreads / kWarp, kTokenTiles, weight.stage_bytes};
  while (shared.warps > 1 && shared.bytes() > most) shared.warps /= 2;
  if (shared.bytes() > most) return "this GPU has too little shared memory";
  cudaFuncSetAttribute(decode, cudaFuncAttributeMaxDynamicSharedMemorySize, shared.bytes());
  const bool is_aligned = weight.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 8 == 0;
  decode<<<grid_of(weight.num_blocks, token_blocks), shared.warps * kWarp, shared.bytes(), stream>>>(
      weight, static_cast<const uint16_t*>(x), is_aligned, static_cast<int>(M), partial);
  const int64_t row_tiles = divide_up(weight.rows, kFragmentTile);
  spmm_fragment_finish<Number, kTokenTiles>
      <<<grid_of(row_tiles, token_blocks), kFragmentThreads, 0, stream>>>(weight, static_cast<int>(M), partial, out);
  return launch_error();
}

template <class Values, int kTokenTiles>
const char* choose_copies(const FragmentArrays& weight, const void* x, int64_t M, float* partial, const SpmmOutput& out,
                          cudaStream_t stream) {
  const bool has_bulk_copies = device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  return (has_bulk_copies ? launch<Values, kTokenTiles, true>
                          : launch<Values, kTokenTiles, false>)(weight, x, M, partial, out, stream);
}

}  // namespace

int64_t spmm_fragment_tokens(int64_t M) { return kTokenTile * token_tiles(M); }

int64_t spmm_fragment_floats(const FragmentArrays& weight, int64_t M) {
  const int64_t tokens = spmm_fragment_tokens(M);
  return fragment_slots(weight.num_blocks, divide_up(weight.rows, kFragmentTile)) * kFragmentTile *
         divide_up(M, tokens) * tokens;
}

const char* spmm_fragment(const FragmentArrays& weight, Dtype dtype, const void* x, int64_t M, float* partial,
                          const SpmmOutput& out, Stream stream) {
  const char* problem = nullptr;
  with_16_bits(dtype, [&](auto number) {
    with_values<decltype(number)>(weight.value_bits, [&](auto values) {
      using Values = decltype(values);
      const int tiles = token_tiles(M);
      const auto run = tiles == 1   ? choose_copies<Values, 1>
                       : tiles == 2 ? choose_copies<Values, 2>
                                    : choose_copies<Values, 4>;
      problem = run(weight, x, M, partial, out, static_cast<cudaStream_t>(stream));
    });
  });
  return problem;
}

const char* expand_fragment(const FragmentArrays& weight, Dtype dtype, void* dense, Stream stream) {
  const int64_t num_tiles = divide_up(weight.rows, kFragmentTile) * divide_up(weight.cols, kFragmentTile);
  if (num_tiles == 0) return nullptr;
  const int shared = (kStages - 1) * weight.stage_bytes + kFragmentReadBytes;
  const dim3 grid = grid_of(divide_up(num_tiles, 4), 1);  // four tiles for every ring
  with_16_bits(dtype, [&](auto number) {
    with_values<decltype(number)>(weight.value_bits, [&](auto values) {
      fragment_expand<decltype(values)>
          <<<grid, kWarp, shared, static_cast<cudaStream_t>(stream)>>>(weight, static_cast<uint16_t*>(dense));
    });
  });
  return launch_error();
}

}  // namespace sparsecore::cuda
