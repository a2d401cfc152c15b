#include "sparsecore/split.h"

#include <gtest/gtest.h>

#include <algorithm>
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

using Shares = std::vector<std::vector<Task>>;

void check_cover(const Shares& shares, int64_t num_rows, int64_t num_tiles, int64_t num_threads) {
  ASSERT_LE(static_cast<int64_t>(shares.size()), std::max<int64_t>(num_threads, 1));
  std::vector<int> covered(static_cast<size_t>(num_rows * num_tiles));
  std::vector<Task> all_tasks;
  for (const std::vector<Task>& tasks : shares) {
    ASSERT_FALSE(tasks.empty());
    ASSERT_LE(tasks.size(), 3u);
    all_tasks.insert(all_tasks.end(), tasks.begin(), tasks.end());
  }
  for (const Task& task : all_tasks) {
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
    const Shares by_rows = split_rows(row_ptr, num_rows, num_tiles, num_threads);
    if (!by_rows.empty()) {
      check_cover(by_rows, num_rows, num_tiles, num_threads);
      const int64_t fair = work_of(row_ptr, {0, num_rows}) / num_threads;
      for (const std::vector<Task>& tasks : by_rows) {
        ASSERT_EQ(tasks.size(), 1u);
        ASSERT_EQ(tasks[0].tiles.size(), num_tiles);
        ASSERT_LE(work_of(row_ptr, tasks[0].rows), fair + fair / 20);
      }
    }
    if (HasFatalFailure()) return;
  }
}

// The bindings split before they validate: whatever a row_ptr holds, everything is still covered once.
TEST(SplitWork, GarbageRowPtrIsCoveredAsWell) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    const int64_t num_rows = random.integer(1, 50), num_tiles = random.integer(1, 10);
    const int64_t num_threads = random.integer(1, 128);
    const Case trace("seed ", seed, ": ", num_rows, " rows, ", num_tiles, " tiles, ", num_threads, " threads");
    const int64_t reach = random.pick<int64_t>({10, 1000, int64_t(1) << 31});
    Buffer<int32_t> row_ptr(num_rows + 1, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    for (int32_t& value : row_ptr) value = static_cast<int32_t>(random.integer(-reach, reach - 1));
    check_cover(split_work(row_ptr.data(), num_rows, num_tiles, num_threads), num_rows, num_tiles, num_threads);
    const Shares by_rows = split_rows(row_ptr.data(), num_rows, num_tiles, num_threads);
    if (!by_rows.empty()) check_cover(by_rows, num_rows, num_tiles, num_threads);
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
  const Shares shares = split_work(nullptr, 100, 100, 1);
  ASSERT_EQ(shares.size(), 1u);
  ASSERT_EQ(shares[0].size(), 1u);
  EXPECT_EQ(shares[0][0].rows.size(), 100);
  EXPECT_EQ(shares[0][0].tiles.size(), 100);
}

int64_t slowest_share(const Shares& shares, const int32_t* row_ptr) {
  int64_t slowest = 0;
  for (const std::vector<Task>& tasks : shares) {
    int64_t work = 0;
    for (const Task& task : tasks) work += work_of(row_ptr, task.rows) * task.tiles.size();
    slowest = std::max(slowest, work);
  }
  return slowest;
}

// Whatever the rows and however few the tiles: no thread does more than its share and one row.
TEST(SplitWork, SharesAreEvenUpToOneRow) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    const Rows kind = random.pick(kAllRows);
    const int64_t num_rows = random.integer(1, 600), num_tiles = random.integer(1, 70);
    const int64_t num_threads = random.integer(1, 128);
    const Case trace("seed ", seed, ": ", num_rows, " rows, ", num_tiles, " tiles, ", num_threads, " threads");
    const std::vector<int32_t> content = make_row_ptr(kind, num_rows, random);
    const int32_t* row_ptr = kind == Rows::kDense ? nullptr : content.data();
    int64_t heaviest_row = 0;
    for (int64_t n = 0; n < num_rows; ++n) heaviest_row = std::max(heaviest_row, row_work(row_ptr, n));
    const int64_t total = work_of(row_ptr, {0, num_rows}) * num_tiles;
    ASSERT_LE(slowest_share(split_work(row_ptr, num_rows, num_tiles, num_threads), row_ptr),
              total / num_threads + heaviest_row + 1);
  }
}

// Layers of real networks on 2 to 128 threads, wherever a thread has 100 rows to do: within 3% of the mean.
TEST(SplitWork, RealLayersAreBalanced) {
  for (const int64_t num_rows : {64, 128, 256, 512, 768, 1024, 2048, 3072, 4096}) {
    for (const int64_t num_tiles : {1, 2, 3, 5, 7, 9, 17, 33, 131}) {
      for (const Rows kind : {Rows::kDense, Rows::kEven, Rows::kSpread}) {
        Random random(static_cast<uint64_t>(num_rows * 1000 + num_tiles));
        const std::vector<int32_t> content = make_row_ptr(kind, num_rows, random);
        const int32_t* row_ptr = kind == Rows::kDense ? nullptr : content.data();
        const double total = double(work_of(row_ptr, {0, num_rows}) * num_tiles);
        for (int64_t num_threads = 1; num_threads <= 128; ++num_threads) {
          if (num_rows * num_tiles < 100 * num_threads) continue;
          const Shares shares = split_work(row_ptr, num_rows, num_tiles, num_threads);
          ASSERT_LE(double(slowest_share(shares, row_ptr)), 1.03 * total / double(num_threads))
              << num_rows << " rows of kind " << int(kind) << ", " << num_tiles << " tiles, " << num_threads
              << " threads";
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
