// A warp reads a tile of the fragment format from shared memory, quad by quad, as operands of mma.m16n8k16. Every byte
// that a tampered tile can make it read lies within kFragmentReadBytes of the tile's begin.
#pragma once

#include "cuda/device.h"
#include "pack/fragment_layout.h"

namespace sparsecore::cuda {

// The last quad of a full tile may begin at the last value and still loads four, or two words.
inline constexpr int kFragmentReadBytes = kFragmentMaxTileBytes + kFragmentUnit;

// What a lane knows of a tile to find its quads: addresses of its masks and of the values, and how many values come
// before the words of halves 4 a .. 4 a + 3, two counts to a register, in lane 4 a + j for word j.
struct WarpTile {
  uint32_t words;
  uint32_t values;
  uint32_t before[2];
};

template <int kBits>
SPARSECORE_DEVICE WarpTile open_tile(uint32_t tile) {  // warp
  const int lane = thread_index() % kWarp;
  const auto words = read_shared_128(tile + 16 * lane);
  // Four counts of at most 32 in the bytes of a register; summed over the four lanes of a half, at most 128 each.
  const uint32_t counts = static_cast<uint32_t>(count_bits(words.x) | count_bits(words.y) << 8 |
                                                count_bits(words.z) << 16 | count_bits(words.w) << 24);
  uint32_t sums = counts;
  SPARSECORE_UNROLL
  for (int step = 1; step < 4; step *= 2) {
    const uint32_t up = shuffle_up(sums, step);
    if (lane % 4 >= step) sums += up;
  }
  const uint32_t halves = shuffle(sums, lane | 3);
  sums -= counts;
  // Then over lanes of earlier halves.
  const uint32_t mine = (halves & 255) + (halves >> 8 & 255) + (halves >> 16 & 255) + (halves >> 24);
  uint32_t before = mine;
  SPARSECORE_UNROLL
  for (int step = 4; step < kWarp; step *= 2) {
    const uint32_t up = shuffle_up(before, step);
    if (lane >= step) before += up;
  }
  before -= mine;
  uint32_t counted[4];
  SPARSECORE_UNROLL
  for (int r = 0; r < 4; ++r) {
    counted[r] = before + (sums >> 8 * r & 255);
    before += halves >> 8 * r & 255;
  }
  return {tile + 16 * (lane / 8),
          tile + fragment_values_at(kBits),
          {counted[0] | counted[1] << 16, counted[2] | counted[3] << 16}};
}

// How values of 16, 8 or 4 bits become four neighbouring numbers of a row, two to a register, zero where none is
// stored. selector(bits): for each of the 16 patterns, which bytes permute_bytes() takes; lane l keeps that of pattern
// l % 16.

// Sum: what products are added up in. X: what activations are; Quad: four neighbours of a row.
template <class NumberType>
struct FloatProducts {
  using Number = NumberType;
  using Sum = float;
  using X = uint16_t;
  using Quad = uint2;
};

// The values as they are.
template <class NumberType>
struct Values16 : FloatProducts<NumberType> {
  static constexpr int kBits = 16;

  // Bytes 0 .. 7: the next four values, the last one zero unless all four are stored. So bytes 6 and 7 are zero
  // whenever one is missing.
  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) {
    uint32_t result = 0, next = 0;
    for (int e = 0; e < 4; ++e) {
      const bool is_stored = (bits >> e & 1) != 0;
      result |= (is_stored ? (2 * next + 1) << 4 | 2 * next : 0x76u) << 8 * e;
      next += is_stored;
    }
    return result;
  }
  static SPARSECORE_DEVICE uint2 read(uint32_t values, uint32_t at, bool is_full, uint32_t selector) {
    // Three aligned words hold any four values; fewer reads of shared memory than one for each.
    const uint32_t address = values + 2 * at, from = address & ~3u, shift = address * 8;
    const uint32_t low = read_shared_32(from), middle = read_shared_32(from + 4), high = read_shared_32(from + 8);
    const uint32_t first = funnel_shift(low, middle, shift);
    uint32_t last = funnel_shift(middle, high, shift);
    last = is_full ? last : last & 0xffff;
    return {permute_bytes(first, last, selector), permute_bytes(first, last, selector >> 16)};
  }
};

// Four bytes to four numbers: byte - offset, exactly.
template <class Number>
SPARSECORE_DEVICE uint2 widen_bytes(uint32_t bytes, uint32_t offset);
template <>
SPARSECORE_DEVICE uint2 widen_bytes<Half>(uint32_t bytes, uint32_t offset) {
  // The bits 0x6400 + b are the float16 1024 + b.
  const uint32_t bias = 0x64006400u | offset << 16 | offset;
  return {subtract_half2(permute_bytes(bytes, 0x64646464u, 0x4140), bias),
          subtract_half2(permute_bytes(bytes, 0x64646464u, 0x4342), bias)};
}
template <>
SPARSECORE_DEVICE uint2 widen_bytes<Brain>(uint32_t bytes, uint32_t offset) {
  // The bits 0x4b000000 + b are the float32 2^23 + b; 8 bits of a difference are a bfloat16, the upper half.
  const float bias = 8388608.0f + static_cast<float>(offset);
  uint32_t numbers[4];
  SPARSECORE_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    numbers[i] = float_to_bits(bits_to_float(permute_bytes(bytes, 0x4b000000u, 0x7650 + i)) - bias);
  }
  return {permute_bytes(numbers[0], numbers[1], 0x7632), permute_bytes(numbers[2], numbers[3], 0x7632)};
}

// Of values that are bytes: byte 4 stands for a missing one.
SPARSECORE_DEVICE uint32_t byte_selector(uint32_t bits) {
  uint32_t result = 0, next = 0;
  for (int e = 0; e < 4; ++e) {
    const bool is_stored = (bits >> e & 1) != 0;
    result |= (is_stored ? next : 4u) << 4 * e;
    next += is_stored;
  }
  return result;
}

// Four bytes from byte `at` on.
SPARSECORE_DEVICE uint32_t next_bytes(uint32_t values, uint32_t at) {
  const uint32_t address = values + at, from = address & ~3u;
  return funnel_shift(read_shared_32(from), read_shared_32(from + 4), address * 8);
}

// int8, widened without its scale.
template <class Number>
struct Values8 : FloatProducts<Number> {
  static constexpr int kBits = 8;

  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) { return byte_selector(bits); }
  static SPARSECORE_DEVICE uint2 read(uint32_t values, uint32_t at, bool, uint32_t selector) {
    return widen_bytes<Number>(permute_bytes(next_bytes(values, at), 0, selector) ^ 0x80808080u, 128);
  }
};

// int8 as it is, for exact products with int8 activations: four to a register, the second one is not used.
struct Bytes8 {
  using Sum = int32_t;
  using X = int8_t;
  using Quad = uint32_t;
  static constexpr int kBits = 8;

  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) { return byte_selector(bits); }
  static SPARSECORE_DEVICE uint2 read(uint32_t values, uint32_t at, bool, uint32_t selector) {
    return {permute_bytes(next_bytes(values, at), 0, selector), 0};
  }
};

// Four bits, stored with 8 added; widened without their scale.
template <class Number>
struct Values4 : FloatProducts<Number> {
  static constexpr int kBits = 4;

  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) { return byte_selector(bits); }
  static SPARSECORE_DEVICE uint2 read(uint32_t values, uint32_t at, bool, uint32_t selector) {
    const uint32_t from = values + (at / 2 & ~3u);
    uint32_t next = funnel_shift(read_shared_32(from), read_shared_32(from + 4), at * 4);
    next &= 0xffff;  // four half bytes, spread to bytes
    next = (next | next << 8) & 0x00ff00ffu;
    next = (next | next << 4) & 0x0f0f0f0fu;
    return widen_bytes<Number>(permute_bytes(next, 8, selector), 8);
  }
};

// Rows 16 i .. and columns 16 c .. of a tile as the first operand of multiply_add(): a lane's quads of rows g and g
// + 8. `selectors`: Values::selector(lane % 16).
template <class Values>
SPARSECORE_DEVICE void read_fragment(const WarpTile& tile, int i, int c, uint32_t selectors,
                                     uint32_t (&a)[4]) {  // warp
  const int lane = thread_index() % kWarp, half = fragment_half(i, c, 0);
  const auto words = read_shared_64(tile.words + half / 4 * 64 + half % 4 * 4);
  const uint32_t before = shuffle(c % 2 == 0 ? tile.before[0] : tile.before[1], half / 4 * 4 + lane / 8);
  const auto read_quad = [&](uint32_t word, uint32_t first) {
    const uint32_t at = first + static_cast<uint32_t>(count_bits(word & fragment_bits_before(lane)));
    const bool is_full = (~word & 15u << fragment_quad_shift(lane)) == 0;
    // Only the last five bits name a lane, and selectors repeat after 16: no need to cut the quad's bits out.
    const uint32_t selector = shuffle(selectors, static_cast<int>(word >> fragment_quad_shift(lane)));
    return Values::read(tile.values, at, is_full, selector);
  };
  const uint2 top = read_quad(words.x, before & 0xffff), bottom = read_quad(words.y, before >> 16);
  a[0] = top.x;
  a[1] = bottom.x;
  a[2] = top.y;
  a[3] = bottom.y;
}

}  // namespace sparsecore::cuda
