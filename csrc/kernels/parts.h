// How outputs are cut into tiles, and images so that threads can share them by pixels: what a thread wrote in one layer
// it reads in the next.
#pragma once

#include "kernels/copy.h"

namespace sparsecore {
namespace {

// Parts that each of so many images is cut into, for every thread to have as many.
SPARSECORE_INLINE int64_t parts_of_image(int64_t threads, int64_t images) {
  return divide_up(threads, larger(images, 1));
}

// How many of `count` go into a tile, at most `most`. The number of tiles is a multiple of `parts`, and they are of
// equal size: 13 as 7 + 6 and not as 12 + 1, because every tile pays once for its indices and values.
SPARSECORE_INLINE int64_t balanced(int64_t count, int64_t most, int64_t parts = 1) {
  const int64_t tiles = divide_up(divide_up(count, most), parts) * parts;
  return tiles == 0 ? 1 : divide_up(count, tiles);
}

}  // namespace
}  // namespace sparsecore
