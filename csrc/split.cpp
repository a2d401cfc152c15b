#include "sparsecore/split.h"

#include <algorithm>

namespace sparsecore {
namespace {

// A row costs its non-zeros plus a constant: loop start and end, epilogue and store weigh about six entries.
constexpr int64_t kRowCost = 6;

// Each row task packs its activation tiles anew, which weighs about as much as this many rows.
constexpr double kPackRows = 12.0;

int64_t work_before(const int32_t* row_ptr, int64_t row) {
  return kRowCost * row + (row_ptr == nullptr ? 0 : row_ptr[row] - row_ptr[0]);
}

// First row such that the rows before it hold at least `work`.
int64_t row_at(const int32_t* row_ptr, int64_t num_rows, int64_t work) {
  int64_t low = 0, high = num_rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (work_before(row_ptr, middle) < work) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

std::vector<Task> split_work(const int32_t* row_ptr, int64_t num_rows, int64_t num_tiles, int64_t num_threads) {
  std::vector<Task> tasks;
  if (num_rows <= 0 || num_tiles <= 0) return tasks;

  // Tiles first, since a tile split packs nothing twice; rows where the tiles do not divide evenly.
  int64_t best_tile_parts = 1;
  double best_cost = -1.0;
  for (int64_t tile_parts = 1; tile_parts <= std::min(num_threads, num_tiles); ++tile_parts) {
    const int64_t row_parts = std::min(num_threads / tile_parts, num_rows);
    const double rows = double(num_rows) / double(row_parts) + (row_parts > 1 ? kPackRows : 0.0);
    const double cost = double((num_tiles + tile_parts - 1) / tile_parts) * rows;
    if (best_cost < 0.0 || cost < best_cost) {
      best_cost = cost;
      best_tile_parts = tile_parts;
    }
  }
  const int64_t row_parts = std::min(std::max<int64_t>(num_threads / best_tile_parts, 1), num_rows);
  const int64_t total = work_before(row_ptr, num_rows);

  int64_t row_begin = 0;
  for (int64_t r = 0; r < row_parts; ++r) {
    const int64_t row_end = r + 1 == row_parts ? num_rows : row_at(row_ptr, num_rows, total * (r + 1) / row_parts);
    if (row_end <= row_begin) continue;
    for (int64_t t = 0; t < best_tile_parts; ++t) {
      const Range tiles{num_tiles * t / best_tile_parts, num_tiles * (t + 1) / best_tile_parts};
      if (tiles.size() > 0) tasks.push_back({{row_begin, row_end}, tiles});
    }
    row_begin = row_end;
  }
  return tasks;
}

}  // namespace sparsecore
