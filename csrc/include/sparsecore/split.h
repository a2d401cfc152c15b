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

// At most num_threads tasks that cover [0, num_rows) x [0, num_tiles), none empty.
// row_ptr: non-zeros of a sparse weight, or null where every row costs the same.
std::vector<Task> split_work(const int32_t* row_ptr, int64_t num_rows, int64_t num_tiles, int64_t num_threads);

}  // namespace sparsecore
