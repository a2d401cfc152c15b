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

// The kernels of a pass, the first one's threads and shared memory.
template <class Finish>
struct Kernels {
  void (*decode)(FragmentArrays, const void*, bool, int, void*);
  void (*finish)(FragmentArrays, const void*, Finish);
  int threads, shared_bytes;
};

template <class Values, class X, class Finish, bool kBulk, int kTiles>
Kernels<Finish> kernels_of(const Pass& pass, int stage_bytes, int most_shared_bytes) {
  if (pass.is_wide) {
    return {spmm_fragment_wide<Values, kTiles, kBulk>, spmm_fragment_finish<X, Finish, kTiles * kWideWarps>,
            kFragmentThreads, WideShared{stage_bytes}.bytes()};
  }
  FragmentShared shared{kFragmentThreads / kWarp, kTiles, stage_bytes};
  while (shared.warps > 1 && shared.bytes() > most_shared_bytes) shared.warps /= 2;
  return {spmm_fragment_decode<Values, kTiles, kBulk>, spmm_fragment_finish<X, Finish, kTiles>, shared.warps * kWarp,
          shared.bytes()};
}

template <class Values, class X, class Finish, bool kBulk>
Kernels<Finish> kernels_of(const Pass& pass, int stage_bytes, int most_shared_bytes) {
  const auto of = pass.tiles == 1   ? kernels_of<Values, X, Finish, kBulk, 1>
                  : pass.tiles == 2 ? kernels_of<Values, X, Finish, kBulk, 2>
                                    : kernels_of<Values, X, Finish, kBulk, 4>;
  return of(pass, stage_bytes, most_shared_bytes);
}

template <class X>
void move_to(SpmmOutput& out, int64_t number) {
  using T = typename X::Storage;
  out.y = static_cast<T*>(out.y) + number;
  if (out.residual != nullptr) out.residual = static_cast<const T*>(out.residual) + number;
}

// Rows first .. first + M - 1.
template <class X>
FloatFinish rows_from(FloatFinish all, int64_t first, int M, int64_t N) {
  move_to<X>(all.out, first * N);
  all.M = M;
  return all;
}
template <class X>
Int8Finish rows_from(Int8Finish all, int64_t first, int M, int64_t N) {
  move_to<X>(all.out, first * N);
  if (all.x.scales != nullptr) all.x.scales += first;
  all.M = M;
  return all;
}

// All M rows of x, a pass at a time.
template <class Values, class X, class Finish>
const char* run_passes(const FragmentArrays& weight, const void* x_any, int64_t M, void* partial, const Finish& finish,
                       Stream any_stream) {
  const auto stream = static_cast<cudaStream_t>(any_stream);
  const int most_shared_bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool has_bulk_copies = device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
  const Pass pass = pass_for(M);
  const auto of = has_bulk_copies ? kernels_of<Values, X, Finish, true> : kernels_of<Values, X, Finish, false>;
  const Kernels<Finish> kernels = of(pass, weight.stage_bytes, most_shared_bytes);
  if (kernels.shared_bytes > most_shared_bytes) return "this GPU has too little shared memory";
  cudaFuncSetAttribute(kernels.decode, cudaFuncAttributeMaxDynamicSharedMemorySize, kernels.shared_bytes);
  const dim3 blocks = grid_of(weight.num_blocks, 1), row_tiles = grid_of(divide_up(weight.rows, kFragmentTile), 1);
  constexpr size_t kQuadBytes = 4 * sizeof(typename Values::X);
  for (int64_t first = 0; first < M; first += pass.tokens()) {
    const auto* x = static_cast<const typename Values::X*>(x_any) + first * weight.cols;
    const bool is_aligned = weight.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % kQuadBytes == 0;
    const int rows = static_cast<int>(std::min(M - first, pass.tokens()));
    kernels.decode<<<blocks, kernels.threads, kernels.shared_bytes, stream>>>(weight, x, is_aligned, rows, partial);
    kernels.finish<<<row_tiles, kFragmentThreads, 0, stream>>>(weight, partial,
                                                               rows_from<X>(finish, first, rows, weight.rows));
  }
  return launch_error();
}

}  // namespace

int64_t spmm_fragment_tokens(int64_t M) { return pass_for(M).tokens(); }

int64_t spmm_fragment_floats(const FragmentArrays& weight, int64_t M) {
  return fragment_slots(weight.num_blocks, divide_up(weight.rows, kFragmentTile)) * kFragmentTile *
         spmm_fragment_tokens(M);
}

const char* spmm_fragment(const FragmentArrays& weight, Dtype dtype, const void* x, int64_t M, float* partial,
                          const SpmmOutput& out, Stream stream) {
  const char* problem = nullptr;
  with_16_bits(dtype, [&](auto number) {
    using Number = decltype(number);
    with_values<Number>(weight.value_bits, [&](auto values) {
      problem = run_passes<decltype(values), Number>(weight, x, M, partial, FloatFinish{0, out}, stream);
    });
  });
  return problem;
}

const char* spmm_fragment_int8(const FragmentArrays& weight, const Int8Activations& x, int32_t* partial,
                               const Int8Output& out, Stream stream) {
  const char* problem = nullptr;
  with_output(out, [&](auto number) {
    problem = run_passes<Bytes8, decltype(number)>(weight, x.x, x.M, partial, Int8Finish{0, x, out}, stream);
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
