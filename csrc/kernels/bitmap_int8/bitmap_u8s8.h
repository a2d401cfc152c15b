// Bitmap, activation bytes x sparse int8 weights: algorithm text. The dense product, with each vector of weights
// expanded from its mask and its values just before use. A wrapper defines Dot as for gemm_u8s8.h, and
//   Mask, load_mask(const uint8_t*), count(mask): bits of the bytes of a quad vector, and how many are set;
//   expand(const int8_t* values, mask): Weights; reads kReadBeyond bytes at most.
#pragma once

#include "kernels/int8_product.h"

namespace sparsecore {
namespace {

template <class Dot>
struct BitmapU8S8 {
  using Args = BitmapInt8Args;
  static constexpr int kBlocks = Dot::kBlocks, kPositions = Dot::kPositions;
  static constexpr int32_t kByteOffset = Dot::kByteOffset;
  static constexpr bool kWidens = Dot::kWidens;
  static constexpr int64_t kInputQuadBytes = kWidens ? 8 : 4;

  static bool supports(const BitmapInt8View& weight) { return weight.lanes == Dot::kLanes; }
  static int64_t num_offsets(const BitmapInt8View& weight) { return weight.segments; }
  static void fill_offsets(const Args& args, int64_t* offset) {
    for (int64_t s = 0; s < args.weight.segments; ++s) offset[s] = args.x.segment_offset[s];
  }

  template <int NB, int T>
  static void accumulate(const BitmapInt8View& weight, int64_t block, const uint8_t* const* x, const int64_t* offset,
                         int32_t* acc, int64_t ld) {
    constexpr int64_t kMaskBytes = Dot::kLanes / 2;
    const int64_t quads = weight.quads();
    const uint8_t* masks[NB];
    int64_t next[NB];
    typename Dot::Sum sums[NB][T];
    SPARSECORE_UNROLL
    for (int j = 0; j < NB; ++j) {
      masks[j] = weight.masks + (block + j) * weight.segments * quads * kMaskBytes;
      next[j] = weight.value_ptr[block + j];
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) sums[j][i] = Dot::zero();
    }
    for (int64_t s = 0; s < weight.segments; ++s) {
      const uint8_t* from[T];
      SPARSECORE_UNROLL
      for (int i = 0; i < T; ++i) from[i] = x[i] + offset[s];
      for (int64_t q = 0; q < quads; ++q) {
        typename Dot::Weights w[NB];
        SPARSECORE_UNROLL
        for (int j = 0; j < NB; ++j) {
          const auto mask = Dot::load_mask(masks[j] + q * kMaskBytes);
          w[j] = Dot::expand(weight.values + next[j], mask);
          // Masks are not validated: counting their bits would read as much as the product does. Wrong ones read
          // wrong values, but none outside the array.
          next[j] = smaller(next[j] + Dot::count(mask), weight.nnz);
        }
        SPARSECORE_UNROLL
        for (int i = 0; i < T; ++i) {
          const auto a = Dot::broadcast(from[i] + kInputQuadBytes * q);
          SPARSECORE_UNROLL
          for (int j = 0; j < NB; ++j) sums[j][i] = Dot::multiply_add(sums[j][i], a, w[j]);
        }
      }
      SPARSECORE_UNROLL
      for (int j = 0; j < NB; ++j) masks[j] += quads * kMaskBytes;
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
