#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "packed.h"
#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

using Packed = PackedWeight<PanelView<float>>;

template <class T>
std::vector<T> content(const Buffer<T>& buffer) {
  return {buffer.begin(), buffer.end()};
}

// The picture in views.h.
TEST(Panel, ThePictureOfTheHeader) {
  const Csr<float> csr{2, 3, {0, 2, 4}, {0, 2, 0, 1}, {5, 7, 1, 2}};
  const Packed packed(csr, {.block_rows = 2, .panel_cols = 2}, Guard::kAfter);
  EXPECT_EQ(content(packed.run_ptr), (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(content(packed.entry_ptr), (std::vector<int32_t>{0, 3, 4}));
  EXPECT_EQ(content(packed.run_row), (std::vector<uint8_t>{1, 0, 0, 1}));
  EXPECT_EQ(content(packed.run_length), (std::vector<uint8_t>{2, 1, 1, 0}));
  EXPECT_EQ(content(packed.panel_col), (std::vector<uint8_t>{0, 1, 0, 0}));
  EXPECT_EQ(content(packed.values), (std::vector<float>{1, 2, 5, 7}));
}

struct Sizes {
  int64_t rows, cols;
  Packing packing;
};

Sizes random_sizes(Random& random) {
  Sizes sizes{
      random.pick<int64_t>({0, 1, 2, 7, 8, 9, 40, 300}), random.pick<int64_t>({0, 1, 2, 15, 16, 17, 90, 600}), {}};
  sizes.packing.block_rows = random.pick<int64_t>({1, 2, 8, 64, 255, kMaxBlockRows});
  sizes.packing.panel_cols = random.pick<int64_t>({1, 2, 16, 45, 254, kMaxPanelCols});
  return sizes;
}

std::string describe(uint64_t seed, const Sizes& sizes) {
  return "seed " + std::to_string(seed) + ": " + std::to_string(sizes.rows) + "x" + std::to_string(sizes.cols) +
         ", blocks of " + std::to_string(sizes.packing.block_rows) + " rows, panels of " +
         std::to_string(sizes.packing.panel_cols) + " columns";
}

// Every promise of the header about the arrays.
void check_structure(const Csr<float>& csr, const PanelView<float>& view) {
  ASSERT_EQ(view.run_ptr[0], 0);
  ASSERT_EQ(view.entry_ptr[0], 0);
  ASSERT_EQ(view.run_ptr[view.num_segments()], view.num_runs);
  ASSERT_EQ(view.entry_ptr[view.num_segments()], csr.nnz());
  for (int64_t segment = 0; segment < view.num_segments(); ++segment) {
    const int64_t panel = segment / view.num_blocks(), block = segment % view.num_blocks();
    const int64_t height = std::min(view.block_rows, csr.rows - block * view.block_rows);
    const bool is_edge = panel == 0 || panel + 1 == view.num_panels();
    int64_t entry = view.entry_ptr[segment];
    std::vector<bool> has_run(static_cast<size_t>(height));
    for (int64_t run = view.run_ptr[segment]; run < view.run_ptr[segment + 1]; ++run) {
      ASSERT_LT(view.run_row[run], height);
      ASSERT_FALSE(has_run[view.run_row[run]]) << "a row has two runs in segment " << segment;
      has_run[view.run_row[run]] = true;
      ASSERT_TRUE(is_edge || view.run_length[run] > 0) << "empty run in segment " << segment;
      ASSERT_TRUE(run == view.run_ptr[segment] || view.run_length[run] <= view.run_length[run - 1])
          << "not longest first";
      for (int64_t i = 1; i < view.run_length[run]; ++i) {
        ASSERT_LT(view.panel_col[entry + i - 1], view.panel_col[entry + i]);
      }
      entry += view.run_length[run];
    }
    ASSERT_EQ(entry, view.entry_ptr[segment + 1]);
    ASSERT_TRUE(!is_edge || std::all_of(has_run.begin(), has_run.end(), [](bool has) { return has; }));
  }
}

// Calls function for ranges that together are all blocks, in random order.
template <class Function>
void for_block_parts(Random& random, int64_t num_blocks, Function function) {
  std::vector<Range> parts;
  for (int64_t block = 0; block < num_blocks;) {
    const int64_t end = random.integer(block + 1, num_blocks);
    const int64_t place = random.integer(0, static_cast<int64_t>(parts.size()));
    parts.insert(parts.begin() + place, Range{block, end});
    block = end;
  }
  for (const Range& part : parts) function(part);
}

TEST(Panel, PacksAsTheHeaderSaysAndBack) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    const Sizes sizes = random_sizes(random);
    const Case trace(describe(seed, sizes));
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    Csr<float> csr = random_csr<float>(random, sizes.rows, sizes.cols, random.pick(kAllFills));
    for (float& value : csr.values) {
      if (random.chance(0.1)) value = random.any_float();  // also NaN, -0.0 and other zeros that a mask kept
    }
    const Packed packed(csr, sizes.packing, guard);
    ASSERT_EQ(validate_panel(packed.view(), {0, packed.num_rows()}), nullptr);
    check_structure(csr, packed.view());

    Buffer<int32_t> row_ptr(csr.rows + 1, guard), col_idx(csr.nnz(), guard);
    Buffer<float> values(csr.nnz(), guard);
    for_block_parts(random, packed.num_rows(),
                    [&](Range blocks) { count_unpacked(packed.view(), blocks, row_ptr.data()); });
    ASSERT_EQ(running_sum(row_ptr.data(), csr.rows), csr.nnz());
    for_block_parts(random, packed.num_rows(), [&](Range blocks) {
      unpack_panel(packed.view(), blocks, row_ptr.data(), col_idx.data(), values.data());
    });
    ASSERT_EQ(content(row_ptr), csr.row_ptr);
    ASSERT_EQ(content(col_idx), csr.col_idx);
    ASSERT_EQ(csr.nnz() == 0 ? 0 : std::memcmp(values.data(), csr.values.data(), csr.values.size() * sizeof(float)), 0);
    if (::testing::Test::HasFailure()) return;
  }
}

// So that any number of threads makes the same bits.
TEST(Panel, AnySplitOfTheBlocksGivesTheSameArrays) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Sizes sizes = random_sizes(random);
    const Case trace(describe(seed, sizes));
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    const Csr<float> csr = random_csr<float>(random, sizes.rows, sizes.cols, random.pick(kAllFills));
    const Packed whole(csr, sizes.packing, guard);
    const PanelView<float> view = whole.view();
    const int64_t block_rows = view.block_rows, panel_cols = view.panel_cols;
    Buffer<int32_t> run_ptr(view.num_segments() + 1, guard), entry_ptr(view.num_segments() + 1, guard);
    Buffer<uint8_t> run_row(view.num_runs, guard), run_length(view.num_runs, guard), panel_col(view.nnz, guard);
    Buffer<float> values(view.nnz, guard);
    for_block_parts(random, whole.num_rows(), [&](Range blocks) {
      count_panel(csr.view(), block_rows, panel_cols, blocks, run_ptr.data(), entry_ptr.data());
    });
    ASSERT_EQ(running_sum(run_ptr.data(), view.num_segments()), view.num_runs);
    ASSERT_EQ(running_sum(entry_ptr.data(), view.num_segments()), view.nnz);
    for_block_parts(random, whole.num_rows(), [&](Range blocks) {
      fill_panel<float>(
          csr.view(), block_rows, panel_cols, blocks,
          {run_ptr.data(), entry_ptr.data(), run_row.data(), run_length.data(), panel_col.data(), values.data()});
    });
    ASSERT_EQ(content(run_ptr), content(whole.run_ptr));
    ASSERT_EQ(content(entry_ptr), content(whole.entry_ptr));
    ASSERT_EQ(content(run_row), content(whole.run_row));
    ASSERT_EQ(content(run_length), content(whole.run_length));
    ASSERT_EQ(content(panel_col), content(whole.panel_col));
    ASSERT_EQ(content(values), content(whole.values));
  }
}

// Runs every enabled kernel on a weight that validation let through: no fault, and every output a finite number.
void check_kernels_survive(const Packed& packed) {
  const PanelView<float> weight = packed.view();
  for (const int64_t columns : {1, 9}) {
    Buffer<float> x(weight.cols * columns, Guard::kAfter);
    std::fill(x.begin(), x.end(), 0.5f);
    for (const Kernel<SpmmPanelArgs>& kernel : spmm_panel_kernels()) {
      if (!isa_enabled(kernel.isa)) continue;
      Buffer<float> y = unwritten_output(weight.rows * columns, Guard::kAfter);
      SpmmPanelArgs args;
      args.weight = weight;
      args.layout = Layout::kColumns;
      args.columns = args.ldx = args.ldy = columns;
      args.x = x.data();
      args.y = y.data();
      run_all(kernel, args, packed.num_rows(), Guard::kAfter);
      const bool is_finite = std::all_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); });
      ASSERT_TRUE(is_finite) << kernel.name << " leaves outputs unwritten or uses sums that nobody began";
    }
  }
}

TEST(ValidatePanel, FindsEachKindOfDamage) {
  for (uint64_t seed = 0; seed < 1400; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed, ", damage ", seed % 14);
    const Csr<float> csr = random_csr<float>(random, random.integer(3, 20), random.integer(20, 60), Fill::kHalf);
    Packed packed(csr, {random.integer(2, 8), random.integer(2, 18)},
                  random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    const PanelView<float> view = packed.view();
    const int64_t segment = random.integer(0, view.num_segments() - 1);
    const int64_t run = random.integer(0, view.num_runs - 1), entry = random.integer(0, view.nnz - 1);
    const char* damage = nullptr;
    switch (seed % 14) {
      case 0:
        damage = "run_ptr negative";
        packed.run_ptr[segment] = -1;
        break;
      case 1:
        damage = "run_ptr descends";
        packed.run_ptr[segment + 1] = packed.run_ptr[segment] - 1;
        break;
      case 2:
        damage = "run_ptr past the runs";
        packed.run_ptr[segment + 1] = static_cast<int32_t>(view.num_runs) + 1;
        break;
      case 3:
        damage = "run_ptr far away";
        packed.run_ptr[segment + 1] = std::numeric_limits<int32_t>::max();
        break;
      case 4:
        damage = "entry_ptr negative";
        packed.entry_ptr[segment] = -1;
        break;
      case 5:
        damage = "entry_ptr descends";
        packed.entry_ptr[segment + 1] = packed.entry_ptr[segment] - 1;
        break;
      case 6:
        damage = "entry_ptr past the entries";
        packed.entry_ptr[segment + 1] = static_cast<int32_t>(view.nnz) + 1;
        break;
      case 7:
        damage = "entry_ptr far away";
        packed.entry_ptr[segment + 1] = std::numeric_limits<int32_t>::max();
        break;
      case 8:
        damage = "run_row past its block";
        packed.run_row[run] = static_cast<uint8_t>(view.block_rows);
        break;
      case 9:
        damage = "run longer than its segment";
        ++packed.run_length[run];
        break;
      case 10:
        damage = "run shorter";
        if (packed.run_length[run] == 0) continue;
        --packed.run_length[run];
        break;
      case 11:
        damage = "panel_col past its panel";
        packed.panel_col[entry] = static_cast<uint8_t>(view.panel_cols);
        break;
      case 12: {
        damage = "panel_col past the last column";
        const int64_t width = view.cols - (view.num_panels() - 1) * view.panel_cols;
        packed.panel_col[view.nnz - 1] = static_cast<uint8_t>(width);
        break;
      }
      case 13: {
        damage = "a row twice and another one without a run in the first panel";
        if (view.run_ptr[1] < 2) continue;
        packed.run_row[0] = packed.run_row[1];
        break;
      }
    }
    EXPECT_NE(validate_panel(packed.view(), {0, view.num_blocks()}), nullptr) << damage;
    if (::testing::Test::HasFailure()) return;
  }
}

// Only the blocks asked for are looked at, so that each thread checks its own.
TEST(ValidatePanel, OtherBlocksDoNotMatter) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr = random_csr<float>(random, 20, 40, Fill::kHalf);
    Packed packed(csr, {4, 10}, Guard::kAfter);
    const PanelView<float> view = packed.view();
    const int64_t segment = random.integer(0, view.num_segments() - 1), block = segment % view.num_blocks();
    if (view.entry_ptr[segment] == view.entry_ptr[segment + 1]) continue;
    packed.panel_col[view.entry_ptr[segment]] = 200;
    for (int64_t other = 0; other < view.num_blocks(); ++other) {
      EXPECT_EQ(validate_panel(view, {other, other + 1}) == nullptr, other != block);
    }
    EXPECT_NE(validate_panel(view, {0, view.num_blocks()}), nullptr);
    EXPECT_EQ(validate_panel(view, {block, block}), nullptr);
  }
}

// Whatever a few wrong numbers make of a weight: it is either refused, or safe to run.
TEST(ValidatePanel, WhatItAcceptsIsSafe) {
  int num_accepted = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Csr<float> csr =
        random_csr<float>(random, random.integer(1, 12), random.integer(1, 24), random.pick(kAllFills));
    Packed packed(csr, {random.integer(1, 5), random.integer(1, 9)},
                  random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
    const auto damage = [&](auto& buffer, int64_t low, int64_t high) {
      if (buffer.size() == 0) return;
      auto& value = buffer[random.integer(0, buffer.size() - 1)];
      value = static_cast<std::remove_reference_t<decltype(value)>>(random.chance(0.5) ? value + random.integer(-1, 1)
                                                                                       : random.integer(low, high));
    };
    for (int64_t i = random.integer(1, 3); i > 0; --i) {
      switch (random.integer(0, 4)) {
        case 0:
          damage(packed.run_ptr, -2, packed.run_row.size() + 2);
          break;
        case 1:
          damage(packed.entry_ptr, -2, packed.values.size() + 2);
          break;
        case 2:
          damage(packed.run_row, 0, 6);
          break;
        case 3:
          damage(packed.run_length, 0, 10);
          break;
        case 4:
          damage(packed.panel_col, 0, 10);
          break;
      }
    }
    if (validate_panel(packed.view(), {0, packed.num_rows()}) != nullptr) continue;
    ++num_accepted;
    check_kernels_survive(packed);
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(num_accepted, 500);
}

}  // namespace
}  // namespace sparsecore::test
