// y = activation(scale x_scale (x W^T - zero_point weight_sum) + bias + residual) with dense int8 W and int8 x, exact
// in int32, on tensor cores. The algorithm text of linear_int8.cu.
//
// A block takes 16 rows of W and some rows of x; its warps share the columns, 64 at a time: a lane loads 16 neighbours
// of a row of W and of x, which are then four columns of each of two products (any order of columns will do that is the
// same for both). Sums of warps are added at the end.
#pragma once

#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"

namespace sparsecore::cuda {

inline constexpr int kInt8Threads = 256;
inline constexpr int kInt8Rows = 16;   // of mma.m16n8k32
inline constexpr int kInt8Tokens = 8;  // its columns
inline constexpr int kInt8Columns = 64;

// Bytes col .. col + 15 of a row of `size`, zeros past its end. is_aligned: size and the row's begin are multiples
// of 16.
SPARSECORE_DEVICE uint4 load_bytes(const int8_t* row, bool is_aligned, int64_t col, int64_t size) {
  if (col >= size) return {0, 0, 0, 0};
  if (is_aligned) return load_four(row + col);
  uint32_t words[4] = {};
  SPARSECORE_UNROLL
  for (int e = 0; e < 16; ++e) {
    if (col + e < size) words[e / 4] |= uint32_t(static_cast<uint8_t>(load(row + col + e))) << e % 4 * 8;
  }
  return {words[0], words[1], words[2], words[3]};
}

// block_x: 16 rows of W; block_y: 8 * kTokenTiles rows of x. Shared memory: 16 * 8 * kTokenTiles sums of each warp.
template <class X, int kTokenTiles>
SPARSECORE_KERNEL(kInt8Threads, 2)
linear_int8_rows(Int8Arrays weight, Int8Activations x, bool is_aligned, Int8Output out) {
  constexpr int kTokens = kInt8Tokens * kTokenTiles, kSums = kInt8Rows * kTokens;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp, warps = block_threads() / kWarp;
  const int64_t N = weight.rows, K = weight.cols, M = x.M, first_token = block_y() * kTokens;
  auto* sums = reinterpret_cast<int32_t*>(shared_memory());
  const int64_t first_row = block_x() * kInt8Rows;
  const int64_t row = first_row + lane / 4;
  int32_t acc[kTokenTiles][4] = {};
  for (int64_t chunk = int64_t(warp) * kInt8Columns; chunk < K; chunk += int64_t(warps) * kInt8Columns) {
    const int64_t col = chunk + lane % 4 * 16;
    const uint4 top = load_bytes(weight.values + row * K, is_aligned, col, row < N ? K : 0);
    const uint4 bottom = load_bytes(weight.values + (row + 8) * K, is_aligned, col, row + 8 < N ? K : 0);
    const uint32_t left[4] = {top.x, bottom.x, top.y, bottom.y}, right[4] = {top.z, bottom.z, top.w, bottom.w};
    SPARSECORE_UNROLL
    for (int n = 0; n < kTokenTiles; ++n) {
      const int64_t token = first_token + n * kInt8Tokens + lane / 4;
      const uint4 b = load_bytes(x.x + token * K, is_aligned, col, token < M ? K : 0);
      multiply_add_int8(acc[n], left, b.x, b.y);
      multiply_add_int8(acc[n], right, b.z, b.w);
    }
  }
  SPARSECORE_UNROLL
  for (int n = 0; n < kTokenTiles; ++n) {
    SPARSECORE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int at = (lane / 4 + q / 2 * 8) * kTokens + n * kInt8Tokens + lane % 4 * 2 + q % 2;
      sums[warp * kSums + at] = acc[n][q];
    }
  }
  sync_block();
  for (int e = thread_index(); e < kSums; e += block_threads()) {
    const int64_t out_row = first_row + e % kInt8Rows, token = first_token + e / kInt8Rows;
    int32_t sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums[w * kSums + e % kInt8Rows * kTokens + e / kInt8Rows];
    if (out_row < N && token < M) {
      store_int8<X>(out, x, load(weight.scale + out_row), token, out_row, token * N + out_row, sum);
    }
  }
}

}  // namespace sparsecore::cuda
