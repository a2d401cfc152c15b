// Which packed byte goes where under a mask of 8 bits.
#pragma once

#include <cstdint>

namespace sparsecore {
namespace {

// For each mask of 8 bits: which of the next bytes each set bit takes; 0x80, which shuffles in a zero, for the others.
struct ExpandBytesTable {
  uint8_t index[256][8];
  constexpr ExpandBytesTable() : index() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int i = 0; i < 8; ++i) index[mask][i] = (mask >> i & 1) != 0 ? next++ : uint8_t{0x80};
    }
  }
};
alignas(64) constexpr ExpandBytesTable kExpandBytes;

}  // namespace
}  // namespace sparsecore
