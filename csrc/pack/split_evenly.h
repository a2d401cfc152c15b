// Items in order, cut into ranges of nearly equal cost.
#pragma once

#include <cstdint>

namespace sparsecore {

// ptr[count + 1]: running sum of what items cost beside the constant item_cost; block_ptr[num_blocks + 1]: the ranges.
inline void split_evenly(const int32_t* ptr, int64_t count, int64_t item_cost, int64_t num_blocks, int32_t* block_ptr) {
  const int64_t all = ptr[count] + item_cost * count;
  int64_t item = 0;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t share = all / num_blocks * block + all % num_blocks * block / num_blocks;
    while (item < count && ptr[item] + item_cost * item < share) ++item;
    block_ptr[block] = static_cast<int32_t>(item);
  }
  block_ptr[num_blocks] = static_cast<int32_t>(count);
}

}  // namespace sparsecore
