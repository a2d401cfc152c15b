#include "sparsecore/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "csr.h"
#include "harness.h"

namespace sparsecore::test {
namespace {

// What a row costs: its entries, and a loop that weighs as much as about six.
int64_t row_work(const int32_t* row_ptr, int64_t row) {
  return 6 + (row_ptr == nullptr ? 0 : row_ptr[row + 1] - row_ptr[row]);
}

int64_t work_of(const int32_t* row_ptr, Range rows) {
  int64_t work = 0;
  for (int64_t n = rows.begin; n < rows.end; ++n) work += row_work(row_ptr, n);
  return work;
}

// Row lengths of a layer: even, as after pruning each row; spread, as after pruning the whole layer at once; skewed,
// a few rows hold most; or one row with everything.
enum class Rows { kDense, kEven, kSpread, kSkewed, kOneFull, kEmpty };
constexpr Rows kAllRows[] = {Rows::kDense, Rows::kEven, Rows::kSpread, Rows::kSkewed, Rows::kOneFull, Rows::kEmpty};

std::vector<int32_t> make_row_ptr(Rows kind, int64_t num_rows, Random& random) {
  std::vector<int32_t> row_ptr{0};
  for (int64_t n = 0; n < num_rows; ++n) {
    int64_t nnz = 0;
    if (kind == Rows::kEven) nnz = 100 + random.integer(-10, 10);
    if (kind == Rows::kSpread) nnz = random.integer(20, 250);
    if (kind == Rows::kSkewed) nnz = n % 16 == 0 ? random.integer(500, 1000) : random.integer(0, 40);
    if (kind == Rows::kOneFull) nnz = n == num_rows / 3 ? 4000 : 0;
    row_ptr.push_back(row_ptr.back() + static_cast<int32_t>(nnz));
  }
  return row_ptr;
}

void check_cover(const std::vector<Task>& tasks, int64_t num_rows, int64_t num_tiles, int64_t num_threads) {
  ASSERT_LE(static_cast<int64_t>(tasks.size()), std::max<int64_t>(num_threads, 1));
  std::vector<int> covered(static_cast<size_t>(num_rows * num_tiles));
  for (const Task& task : tasks) {
    ASSERT_LT(task.rows.begin, task.rows.end);
    ASSERT_LT(task.tiles.begin, task.tiles.end);
    ASSERT_GE(task.rows.begin, 0);
    ASSERT_LE(task.rows.end, num_rows);
    ASSERT_GE(task.tiles.begin, 0);
    ASSERT_LE(task.tiles.end, num_tiles);
    for (int64_t n = task.rows.begin; n < task.rows.end; ++n) {
      for (int64_t t = task.tiles.begin; t < task.tiles.end; ++t) ++covered[static_cast<size_t>(n * num_tiles + t)];
    }
  }
  ASSERT_TRUE(std::all_of(covered.begin(), covered.end(), [](int count) { return count == 1; }));
}

TEST(SplitWork, CoversEverythingExactlyOnce) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    Random random(seed);
    const Rows kind = random.pick(kAllRows);
    const int64_t num_rows = random.chance(0.3) ? random.integer(0, 5) : random.integer(1, 150);
    const int64_t num_tiles = random.chance(0.3) ? random.integer(0, 2) : random.integer(1, 40);
    const int64_t num_threads = random.chance(0.1) ? random.integer(-1, 2) : random.integer(1, 128);
    const Case trace("seed ", seed, ": ", num_rows, " rows, ", num_tiles, " tiles, ", num_threads, " threads");
    const GuardedCsr<int8_t> csr({num_rows, 0, make_row_ptr(kind, num_rows, random), {}, {}},
                                 random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    const int32_t* row_ptr = kind == Rows::kDense ? nullptr : csr.row_ptr.data();
    check_cover(split_work(row_ptr, num_rows, num_tiles, num_threads), num_rows, num_tiles, num_threads);
    if (HasFatalFailure()) return;
  }
}

TEST(SplitWork, NothingToDoMakesNoTask) {
  const int32_t row_ptr[] = {0};
  EXPECT_TRUE(split_work(row_ptr, 0, 5, 4).empty());
  EXPECT_TRUE(split_work(row_ptr, 0, 0, 4).empty());
  EXPECT_TRUE(split_work(nullptr, 5, 0, 4).empty());
}

TEST(SplitWork, OneThreadGetsOneTask) {
  const std::vector<Task> tasks = split_work(nullptr, 100, 100, 1);
  ASSERT_EQ(tasks.size(), 1u);
  EXPECT_EQ(tasks[0].rows.size(), 100);
  EXPECT_EQ(tasks[0].tiles.size(), 100);
}

// Whatever the rows look like: parts of rows differ from the mean by less than the heaviest row, parts of tiles by
// less than one tile.
TEST(SplitWork, PartsAreEvenUpToOneRowAndOneTile) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    const Rows kind = random.pick(kAllRows);
    const int64_t num_rows = random.integer(1, 600), num_tiles = random.integer(1, 70);
    const int64_t num_threads = random.integer(1, 128);
    const Case trace("seed ", seed, ": ", num_rows, " rows, ", num_tiles, " tiles, ", num_threads, " threads");
    const std::vector<int32_t> content = make_row_ptr(kind, num_rows, random);
    const int32_t* row_ptr = kind == Rows::kDense ? nullptr : content.data();
    const std::vector<Task> tasks = split_work(row_ptr, num_rows, num_tiles, num_threads);
    std::set<std::pair<int64_t, int64_t>> row_parts, tile_parts;
    for (const Task& task : tasks) {
      row_parts.insert({task.rows.begin, task.rows.end});
      tile_parts.insert({task.tiles.begin, task.tiles.end});
    }
    ASSERT_EQ(tasks.size(), row_parts.size() * tile_parts.size()) << "tasks should be a grid of rows x tiles";
    int64_t heaviest_row = 0;
    for (int64_t n = 0; n < num_rows; ++n) heaviest_row = std::max(heaviest_row, row_work(row_ptr, n));
    const int64_t total = work_of(row_ptr, {0, num_rows});
    for (const auto& [begin, end] : row_parts) {
      ASSERT_LE(work_of(row_ptr, {begin, end}), total / static_cast<int64_t>(row_parts.size()) + heaviest_row);
    }
    for (const auto& [begin, end] : tile_parts) {
      ASSERT_LE((end - begin) * static_cast<int64_t>(tile_parts.size()),
                num_tiles + static_cast<int64_t>(tile_parts.size()));
    }
  }
}

// Layers of real networks on 1 to 128 threads: how much more than the mean of all threads, idle ones included, the
// slowest may do. Packing the activations again costs a part of rows as much as 12 rows, so with few rows per thread
// an uneven split by tiles is the better one.
constexpr struct {
  int64_t min_rows_per_thread;
  double max_imbalance;
} kBounds[] = {{48, 1.25}, {16, 1.75}};

TEST(SplitWork, RealLayersAreBalanced) {
  for (const int64_t num_rows : {64, 128, 256, 512, 768, 1024, 2048, 3072, 4096}) {
    for (const int64_t num_tiles : {1, 2, 3, 5, 7, 9, 17, 33, 131}) {
      for (const Rows kind : {Rows::kDense, Rows::kEven, Rows::kSpread}) {
        Random random(static_cast<uint64_t>(num_rows * 1000 + num_tiles));
        const std::vector<int32_t> content = make_row_ptr(kind, num_rows, random);
        const int32_t* row_ptr = kind == Rows::kDense ? nullptr : content.data();
        const double total = double(work_of(row_ptr, {0, num_rows}) * num_tiles);
        for (int64_t num_threads = 1; num_threads <= 128; ++num_threads) {
          int64_t slowest = 0;
          for (const Task& task : split_work(row_ptr, num_rows, num_tiles, num_threads)) {
            slowest = std::max(slowest, work_of(row_ptr, task.rows) * task.tiles.size());
          }
          const double imbalance = double(slowest) / (total / double(num_threads));
          for (const auto& bound : kBounds) {
            if (num_rows < bound.min_rows_per_thread * num_threads) continue;
            ASSERT_LE(imbalance, bound.max_imbalance) << num_rows << " rows of kind " << int(kind) << ", " << num_tiles
                                                      << " tiles, " << num_threads << " threads";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
