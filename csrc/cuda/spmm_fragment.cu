#include "cuda/spmm_fragment_wide.h"

#include <algorithm>
#include <iterator>

#include "cuda/launch.h"

namespace sparsecore::cuda {
namespace {

// A pass over W: for so many rows of x at most, each warp decodes for itself (8 * kTiles rows) or for the block (64 *
// kTiles). With more rows than the last one there are several passes.
struct Pass {
  int tiles;
  bool is_wide;
  int64_t tokens() const { return tiles * kTokenTile * (is_wide ? kWideWarps : 1); }
};
constexpr Pass kPasses[] = {{1, false}, {2, false}, {4, false}, {1, true}, {2, true}, {4, true}};

Pass pass_for(int64_t M) {
  for (const Pass& pass : kPasses) {
    if (M <= pass.tokens()) return pass;
  }
  return std::end(kPasses)[-1];
}

template <class Number, class Function>
void with_values(int value_bits, Function function) {
  if (value_bits == 16) return function(Values16<Number>{});
  if (value_bits == 8) return function(Values8<Number>{});
  function(Values4<Number>{});
}

// The kernel of a pass, its threads and shared memory.
struct Decoder {
  void (*kernel)(FragmentArrays, const uint16_t*, bool, int, float*);
  int threads, shared_bytes;
};

template <class Values, int kTiles, bool kBulk>
Decoder decoder_of(const Pass& pass, int stage_bytes, int most_shared_bytes) {
  if (pass.is_wide) {
    return {spmm_fragment_wide<Values, kTiles, kBulk>, kFragmentThreads, WideShared{stage_bytes}.bytes()};
  }
  FragmentShared shared{kFragmentThreads / kWarp, kTiles, stage_bytes};
  while (shared.warps > 1 && shared.bytes() > most_shared_bytes) shared.warps /= 2;
  return {spmm_fragment_decode<Values, kTiles, kBulk>, shared.warps * kWarp, shared.bytes()};
}

template <class Values, bool kBulk>
Decoder decoder_of(const Pass& pass, int stage_bytes, int most_shared_bytes) {
  const auto decoder = pass.tiles == 1   ? decoder_of<Values, 1, kBulk>
                       : pass.tiles == 2 ? decoder_of<Values, 2, kBulk>
                                         : decoder_of<Values, 4, kBulk>;
  return decoder(pass, stage_bytes, most_shared_bytes);
}

template <class Number>
auto finisher_of(int64_t tokens) {
  return tokens == 8     ? spmm_fragment_finish<Number, 1>
         : tokens == 16  ? spmm_fragment_finish<Number, 2>
         : tokens == 32  ? spmm_fragment_finish<Number, 4>
         : tokens == 64  ? spmm_fragment_finish<Number, 8>
         : tokens == 128 ? spmm_fragment_finish<Number, 16>
                         : spmm_fragment_finish<Number, 32>;
}

// From row `first` on.
SpmmOutput rows_from(const SpmmOutput& out, int64_t first, int64_t N) {
  SpmmOutput result = out;
  result.y = static_cast<uint16_t*>(out.y) + first * N;
  if (out.residual != nullptr) result.residual = static_cast<const uint16_t*>(out.residual) + first * N;
  return result;
}

}  // namespace

int64_t spmm_fragment_tokens(int64_t M) { return pass_for(M).tokens(); }

int64_t spmm_fragment_floats(const FragmentArrays& weight, int64_t M) {
  return fragment_slots(weight.num_blocks, divide_up(weight.rows, kFragmentTile)) * kFragmentTile *
         spmm_fragment_tokens(M);
}

const char* spmm_fragment(const FragmentArrays& weight, Dtype dtype, const void* x_any, int64_t M, float* partial,
                          const SpmmOutput& out, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const int most_shared_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool has_bulk_copies = device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const Pass pass = pass_for(M);
  Decoder decoder{};
  void (*finish)(FragmentArrays, int, const float*, SpmmOutput) = nullptr;
  with_16_bits(dtype, [&](auto number) {
    using Number = decltype(number);
    with_values<Number>(weight.value_bits, [&](auto values) {
      using Values = decltype(values);
      decoder = (has_bulk_copies ? decoder_of<Values, true> : decoder_of<Values, false>)(pass, weight.stage_bytes,
                                                                                         most_shared_bytes);
    });
    finish = finisher_of<Number>(pass.tokens());
  });
  if (decoder.shared_bytes > most_shared_bytes) return "this GPU has too little shared memory";
  cudaFuncSetAttribute(decoder.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, decoder.shared_bytes);
  const dim3 row_tiles = grid_of(divide_up(weight.rows, kFragmentTile), 1);
  for (int64_t first = 0; first < M; first += pass.tokens()) {
    const auto* x = static_cast<const uint16_t*>(x_any) + first * weight.cols;
    const bool is_aligned = weight.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 8 == 0;
    const int rows = static_cast<int>(std::min(M - first, pass.tokens()));
    decoder.kernel<<<grid_of(weight.num_blocks, 1), decoder.threads, decoder.shared_bytes, cuda_stream>>>(
        weight, x, is_aligned, rows, partial);
    finish<<<row_tiles, kFragmentThreads, 0, cuda_stream>>>(weight, rows, partial, rows_from(out, first, weight.rows));
  }
  return launch_error();
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
