#include "sparsecore/split.h"

#include <algorithm>

namespace sparsecore {
namespace {

// A row costs its non-zeros plus a constant: loop start and end, epilogue and store weigh about six entries.
constexpr int64_t kRowCost = 6;

int64_t work_before(const int32_t* row_ptr, int64_t row) {
  return kRowCost * row + (row_ptr == nullptr ? 0 : int64_t(row_ptr[row]) - row_ptr[0]);
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

struct Place {
  int64_t tile, row;
};

void add(std::vector<Task>& tasks, Range rows, Range tiles) {
  if (rows.size() > 0 && tiles.size() > 0) tasks.push_back({rows, tiles});
}

}  // namespace

std::vector<std::vector<Task>> split_work(const int32_t* row_ptr, int64_t num_rows, int64_t num_tiles,
                                          int64_t num_threads) {
  std::vector<std::vector<Task>> shares;
  if (num_rows <= 0 || num_tiles <= 0) return shares;
  // Rows of an array that nobody has validated yet may claim any work; the order of the places below still holds.
  const int64_t total = std::max<int64_t>(work_before(row_ptr, num_rows), 1);
  const auto place_at = [&](int64_t share) {
    // work = total * num_tiles * share / num_threads, without the product of all three
    const int64_t tiles = num_tiles * share / num_threads, rest = num_tiles * share % num_threads;
    const int64_t row =
        row_at(row_ptr, num_rows, total / num_threads * rest + total % num_threads * rest / num_threads);
    return row == num_rows ? Place{tiles + 1, 0} : Place{tiles, row};
  };
  Place from{0, 0};
  for (int64_t share = 1; share <= num_threads || from.tile < num_tiles; ++share) {
    Place to = share >= num_threads ? Place{num_tiles, 0} : place_at(share);
    if (to.tile < from.tile || (to.tile == from.tile && to.row < from.row)) to = from;
    std::vector<Task> tasks;
    if (from.tile == to.tile) {
      add(tasks, {from.row, to.row}, {from.tile, from.tile + 1});
    } else {
      const int64_t first_full = from.row == 0 ? from.tile : from.tile + 1;
      if (from.row > 0) add(tasks, {from.row, num_rows}, {from.tile, from.tile + 1});
      add(tasks, {0, num_rows}, {first_full, to.tile});
      add(tasks, {0, to.row}, {to.tile, to.tile + 1});
    }
    if (!tasks.empty()) shares.push_back(std::move(tasks));
    from = to;
  }
  return shares;
}

std::vector<std::vector<Task>> split_rows(const int32_t* row_ptr, int64_t num_rows, int64_t num_tiles,
                                          int64_t num_threads) {
  std::vector<std::vector<Task>> shares;
  if (num_rows <= 0 || num_tiles <= 0 || num_threads <= 0) return shares;
  const int64_t total = std::max<int64_t>(work_before(row_ptr, num_rows), 1);
  const int64_t fair = total / num_threads;
  for (int64_t share = 0, begin = 0; share < num_threads; ++share) {
    const int64_t wanted = share + 1 == num_threads ? total : fair * (share + 1);
    const int64_t end = share + 1 == num_threads ? num_rows : std::max(row_at(row_ptr, num_rows, wanted), begin);
    const int64_t work = work_before(row_ptr, end) - work_before(row_ptr, begin);
    if (work > fair + fair / 20) return {};
    if (end > begin) shares.push_back({{{begin, end}, {0, num_tiles}}});
    begin = end;
  }
  return shares;
}

}  // namespace sparsecore
