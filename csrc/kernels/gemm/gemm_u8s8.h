// gemm, activation bytes x dense int8 weights: algorithm text. A wrapper defines Dot with
//   kLanes, kBlocks, kPositions, kByteOffset, kWidens;
//   Sum, Weights, Inputs: sums of the lanes; a quad of each lane; one quad of activations for all lanes;
//   zero(), store(int32_t*, Sum), load_weights(const int8_t*), broadcast(const uint8_t*), which reads 4 bytes, or
//   4 int16 if kWidens;
//   multiply_add(sum, inputs, weights): exact.
#pragma once

#include "kernels/int8_product.h"

namespace sparsecore {
namespace {

template <class Dot>
struct GemmU8S8 {
  using Args = GemmInt8Args;
  static constexpr int kBlocks = Dot::kBlocks, kPositions = Dot::kPositions;
  static constexpr int32_t kByteOffset = Dot::kByteOffset;
  static constexpr bool kWidens = Dot::kWidens;
  static constexpr int64_t kInputQuadBytes = kWidens ? 8 : 4;

  static bool supports(const Int8View& weight) { return weight.lanes == Dot::kLanes; }
  static int64_t num_offsets(const Int8View& weight) { return weight.segments; }
  static void fill_offsets(const Args& args, int64_t* offset) {
    for (int64_t s = 0; s < args.weight.segments; ++s) offset[s] = args.x.segment_offset[s];
  }

  template <int NB, int T>
  static void accumulate(const Int8View& weight, int64_t block, const uint8_t* const* x, const int64_t* offset,
                         int32_t* acc, int64_t ld) {
    constexpr int64_t kQuadBytes = 4 * Dot::kLanes;
    const int8_t* values[NB];
    typename Dot::Sum sums[NB][T];
    SPARSECORE_UNROLL
    for (int j = 0; j < NB; ++j) {
      values[j] = weight.values + (block + j) * weight.block_bytes();
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) sums[j][i] = Dot::zero();
    }
    const int64_t quads = weight.quads();
    for (int64_t s = 0; s < weight.segments; ++s) {
      const uint8_t* from[T];
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) from[i] = x[i] + offset[s];
      for (int64_t q = 0; q < quads; ++q) {
        typename Dot::Weights w[NB];
        SPARSECORE_UNROLL
        for (int j = 0; j < NB; ++j) w[j] = Dot::load_weights(values[j] + q * kQuadBytes);
        SPARSECORE_UNROLL
        for (int i = 0; i < T; ++i) {
          const auto a = Dot::broadcast(from[i] + kInputQuadBytes * q);
          SPARSECORE_UNROLL
          for (int j = 0; j < NB; ++j) sums[j][i] = Dot::multiply_add(sums[j][i], a, w[j]);
        }
      }
      SPARSECORE_UNROLL
      for (int j = 0; j < NB; ++j) values[j] += quads * kQuadBytes;
    }
    SPARSECORE_UNROLL
    for (int j = 0; j < NB; ++j) {
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) Dot::store(acc + i * ld + j * Dot::kLanes, sums[j][i]);
    }
  }
};

}  // namespace
}  // namespace sparsecore
