// Splitting an output of N rows x column tiles between threads, by work and not by rows.
#pragma once

#include <cstdint>
#include <vector>

#include "sparsecore/views.h"

namespace sparsecore {

struct Task {
  Range rows;
  Range tiles;
};

// What each thread does: at most num_threads lists of at most three tasks, none empty, that together cover
// [0, num_rows) x [0, num_tiles) once. Tiles are laid end to end and cut into equal shares of work, so the shares
// differ by one row at most, whatever the number of tiles:
//
//   3 tiles, 2 threads    | tile 0 . . . | tile 1 . . . | tile 2 . . . |
//                         |      first thread   |   second thread      |
//
// row_ptr: running sum of the rows' entries, or null where every row costs the same.
std::vector<std::vector<Task>> split_work(const int32_t* row_ptr, int64_t num_rows, int64_t num_tiles,
                                          int64_t num_threads);

}  // namespace sparsecore
