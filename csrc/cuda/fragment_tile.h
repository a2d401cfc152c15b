// A warp reads a tile of the fragment format from shared memory, quad by quad, as operands of mma.m16n8k16. Every byte
// that a tampered tile can make it read lies within kFragmentReadBytes of the tile's begin.
#pragma once

#include "cuda/device.h"
#include "pack/fragment_layout.h"

namespace sparsecore::cuda {

// The last quad of a full tile may begin at the last value and still loads four, or two words.
inline constexpr int kFragmentReadBytes = kFragmentMaxTileBytes + kFragmentUnit;

template <class T>
SPARSECORE_DEVICE T read_shared(const uint8_t* from) {
  return *reinterpret_cast<const T*>(from);
}

// Lane 4 a + j holds words j of halves 4 a .. 4 a + 3, and how many values come before each.
struct TileMasks {
  uint32_t word[4];
  uint32_t before[4];
};

SPARSECORE_DEVICE TileMasks read_masks(const uint8_t* tile) {
  const int lane = thread_index() % kWarp;
  const auto words = read_shared<uint4>(tile + 16 * lane);
  TileMasks masks = {{words.x, words.y, words.z, words.w}, {}};
  // Four counts of at most 32 in the bytes of a word; summed over the four lanes of a half, at most 128 each.
  uint32_t counts = 0;
  SPARSECORE_UNROLL
  for (int r = 0; r < 4; ++r) counts |= static_cast<uint32_t>(count_bits(masks.word[r])) << 8 * r;
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
  SPARSECORE_UNROLL
  for (int r = 0; r < 4; ++r) {
    masks.before[r] = before + (sums >> 8 * r & 255);
    before += halves >> 8 * r & 255;
  }
  return masks;
}

// A lane's four positions of a half: which have values, and the number of the first.
struct Quad {
  uint32_t bits;  // 0 .. 15
  uint32_t at;
};

SPARSECORE_DEVICE Quad find_quad(const TileMasks& masks, int half) {  // warp
  const int lane = thread_index() % kWarp, source = half / 4 * 4 + lane / 8;
  const uint32_t word = shuffle(masks.word[half % 4], source);
  const uint32_t before = shuffle(masks.before[half % 4], source);
  return {word >> fragment_quad_shift(lane) & 15,
          before + static_cast<uint32_t>(count_bits(word & fragment_bits_before(lane)))};
}

// How values of 16, 8 or 4 bits become four neighbouring numbers of a row, two to a register, zero where none is
// stored. selector(bits): for each of the 16 patterns, which bytes permute_bytes() takes; lane l keeps that of pattern
// l % 16.

// The values as they are.
template <class NumberType>
struct Values16 {
  using Number = NumberType;
  static constexpr int kBits = 16;

  // Bytes 0 .. 7: the next four values, the last one zero unless all four are stored. So byte 7 and 6 are zero whenever
  // one is missing.
  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) {
    uint32_t result = 0, next = 0;
    for (int e = 0; e < 4; ++e) {
      const bool is_stored = (bits >> e & 1) != 0;
      result |= (is_stored ? (2 * next + 1) << 4 | 2 * next : 0x76u) << 8 * e;
      next += is_stored;
    }
    return result;
  }
  static SPARSECORE_DEVICE uint2 read(const uint8_t* values, const Quad& quad, uint32_t selector) {
    const uint8_t* from = values + 2 * quad.at;
    const uint32_t last = quad.bits == 15 ? read_shared<uint16_t>(from + 6) : 0;
    const uint32_t low = read_shared<uint16_t>(from) | uint32_t(read_shared<uint16_t>(from + 2)) << 16;
    const uint32_t high = read_shared<uint16_t>(from + 4) | last << 16;
    return {permute_bytes(low, high, selector), permute_bytes(low, high, selector >> 16)};
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

// int8, widened without its scale.
template <class NumberType>
struct Values8 {
  using Number = NumberType;
  static constexpr int kBits = 8;

  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) { return byte_selector(bits); }
  static SPARSECORE_DEVICE uint2 read(const uint8_t* values, const Quad& quad, uint32_t selector) {
    const uint8_t* from = values + (quad.at & ~3u);
    const uint32_t next = funnel_shift(read_shared<uint32_t>(from), read_shared<uint32_t>(from + 4), quad.at % 4 * 8);
    return widen_bytes<Number>(permute_bytes(next, 0, selector) ^ 0x80808080u, 128);
  }
};

// Four bits, stored with 8 added; widened without their scale.
template <class NumberType>
struct Values4 {
  using Number = NumberType;
  static constexpr int kBits = 4;

  static SPARSECORE_DEVICE uint32_t selector(uint32_t bits) { return byte_selector(bits); }
  static SPARSECORE_DEVICE uint2 read(const uint8_t* values, const Quad& quad, uint32_t selector) {
    const uint8_t* from = values + quad.at / 8 * 4;
    // Four half bytes, spread to bytes.
    uint32_t next =
        funnel_shift(read_shared<uint32_t>(from), read_shared<uint32_t>(from + 4), quad.at % 8 * 4) & 0xffff;
    next = (next | next << 8) & 0x00ff00ffu;
    next = (next | next << 4) & 0x0f0f0f0fu;
    return widen_bytes<Number>(permute_bytes(next, 8, selector), 8);
  }
};

}  // namespace sparsecore::cuda
