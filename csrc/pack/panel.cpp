#include <algorithm>
#include <array>
#include <utility>

#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls function(segment, panel, rows, keeps_empty, begin, end) for the segments of some blocks; the entries of row
// rows.begin + r are begin[r] .. end[r]. Panel by panel, so that a block's arrays stay in the second-level cache.
template <class T, class Function>
void for_each_segment(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Range blocks,
                      Function function) {
  const int64_t num_blocks = divide_up(weight.rows, block_rows);
  const int64_t num_panels = std::max<int64_t>(divide_up(weight.cols, panel_cols), 1);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows{block * block_rows, std::min((block + 1) * block_rows, weight.rows)};
    const auto height = static_cast<size_t>(rows.size());
    const int32_t* row_end = weight.row_ptr + rows.begin + 1;
    std::array<int32_t, kMaxBlockRows> begin, end;
    std::copy_n(weight.row_ptr + rows.begin, height, begin.begin());
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const int64_t column_end = (panel + 1) * panel_cols;
      for (size_t r = 0; r < height; ++r) {
        int32_t i = begin[r];
        while (i < row_end[r] && weight.col_idx[i] < column_end) ++i;
        end[r] = i;
        // Where this row goes on in the next panel: the processor does not follow as many rows as a block has by
        // itself. Filling took about 1.5 times as long without.
        __builtin_prefetch(weight.col_idx + i + 16);
        __builtin_prefetch(weight.values + i + 16);
      }
      const bool keeps_empty = panel == 0 || panel + 1 == num_panels;
      function(panel * num_blocks + block, panel, rows.size(), keeps_empty, begin.data(), end.data());
      std::copy_n(end.begin(), height, begin.begin());
    }
  }
}

// The rows of a segment that have a run, longest first and stable, by counting sort.
class RunOrder {
 public:
  RunOrder(int64_t height, bool keeps_empty, const int32_t* begin, const int32_t* end) {
    int32_t longest = 0;
    for (int64_t r = 0; r < height; ++r) longest = std::max(longest, end[r] - begin[r]);
    // place[length] counts the runs of that length, then it is where the next one goes.
    std::array<int32_t, kMaxPanelCols + 1> place;
    std::fill_n(place.begin(), longest + 1, 0);
    for (int64_t r = 0; r < height; ++r) ++place[static_cast<size_t>(end[r] - begin[r])];
    for (auto length = static_cast<size_t>(longest); length > 0; --length) {
      size_ += std::exchange(place[length], size_);
    }
    place[0] = size_;
    for (int64_t r = 0; r < height; ++r) {
      const auto length = static_cast<size_t>(end[r] - begin[r]);
      row_[static_cast<size_t>(place[length]++)] = static_cast<uint8_t>(r);
    }
    if (keeps_empty) size_ = static_cast<int32_t>(height);
  }
  const uint8_t* begin() const { return row_.data(); }
  const uint8_t* end() const { return row_.data() + size_; }

 private:
  std::array<uint8_t, kMaxBlockRows> row_;
  int32_t size_ = 0;
};

// Calls function(row in its block, length, first entry, panel) for the runs of a block, those of a row left to right.
template <class T, class Function>
void for_each_run(const PanelView<T>& weight, int64_t block, Function function) {
  const int64_t num_blocks = weight.num_blocks(), num_panels = weight.num_panels();
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t segment = panel * num_blocks + block;
    int64_t entry = weight.entry_ptr[segment];
    for (int64_t run = weight.run_ptr[segment]; run < weight.run_ptr[segment + 1]; ++run) {
      function(weight.run_row[run], weight.run_length[run], entry, panel);
      entry += weight.run_length[run];
    }
  }
}

}  // namespace

template <class T>
void count_panel(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Range blocks, int32_t* run_ptr,
                 int32_t* entry_ptr) {
  for_each_segment(
      weight, block_rows, panel_cols, blocks,
      [=](int64_t segment, int64_t, int64_t height, bool keeps_empty, const int32_t* begin, const int32_t* end) {
        int32_t runs = 0, entries = 0;
        for (int64_t r = 0; r < height; ++r) {
          runs += keeps_empty || end[r] > begin[r];
          entries += end[r] - begin[r];
        }
        run_ptr[segment + 1] = runs;
        entry_ptr[segment + 1] = entries;
      });
}

template <class T>
void fill_panel(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Range blocks,
                const PanelArrays<T>& out) {
  for_each_segment(
      weight, block_rows, panel_cols, blocks,
      [=](int64_t segment, int64_t panel, int64_t height, bool keeps_empty, const int32_t* begin, const int32_t* end) {
        int64_t run = out.run_ptr[segment], entry = out.entry_ptr[segment];
        const auto first_col = static_cast<int32_t>(panel * panel_cols);
        for (const uint8_t row : RunOrder(height, keeps_empty, begin, end)) {
          out.run_row[run] = row;
          out.run_length[run++] = static_cast<uint8_t>(end[row] - begin[row]);
          for (int32_t i = begin[row]; i < end[row]; ++i, ++entry) {
            out.panel_col[entry] = static_cast<uint8_t>(weight.col_idx[i] - first_col);
            out.values[entry] = weight.values[i];
          }
        }
      });
}

template <class T>
void count_unpacked(const PanelView<T>& weight, Range blocks, int32_t* row_ptr) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    int32_t* counts = row_ptr + block * weight.block_rows + 1;
    std::fill_n(counts, std::min(weight.block_rows, weight.rows - block * weight.block_rows), 0);
    for_each_run(weight, block, [=](uint8_t row, uint8_t length, int64_t, int64_t) { counts[row] += length; });
  }
}

template <class T>
void unpack_panel(const PanelView<T>& weight, Range blocks, const int32_t* row_ptr, int32_t* col_idx, T* values) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const int64_t first = block * weight.block_rows;
    std::array<int32_t, kMaxBlockRows> next;
    std::copy_n(row_ptr + first, std::min(weight.block_rows, weight.rows - first), next.begin());
    for_each_run(weight, block, [&](uint8_t row, uint8_t length, int64_t entry, int64_t panel) {
      const auto first_col = static_cast<int32_t>(panel * weight.panel_cols);
      int32_t to = next[row];
      for (int64_t i = entry; i < entry + length; ++i, ++to) {
        col_idx[to] = first_col + weight.panel_col[i];
        values[to] = weight.values[i];
      }
      next[row] = to;
    });
  }
}

template <class T>
const char* validate_panel(const PanelView<T>& weight, Range blocks) {
  const int64_t num_blocks = weight.num_blocks(), num_panels = weight.num_panels();
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t width = std::min(weight.panel_cols, weight.cols - panel * weight.panel_cols);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int64_t segment = panel * num_blocks + block;
      const int64_t run = weight.run_ptr[segment], run_end = weight.run_ptr[segment + 1];
      const int64_t entry = weight.entry_ptr[segment], entry_end = weight.entry_ptr[segment + 1];
      if (run < 0 || run > run_end || run_end > weight.num_runs || entry < 0 || entry > entry_end ||
          entry_end > weight.nnz) {
        return "segments must rise inside the runs and entries";
      }
      const int64_t height = std::min(weight.block_rows, weight.rows - block * weight.block_rows);
      if (run_end - run > height) return "a row must have one run in a segment";
      // In every call, and with few activations a tenth of its time: so simple that the compiler vectorizes it.
      int32_t length = 0;
      uint8_t last_row = 0, last_col = 0;
      for (int64_t i = run; i < run_end; ++i) length += weight.run_length[i];
      for (int64_t i = run; i < run_end; ++i) last_row = std::max(last_row, weight.run_row[i]);
      for (int64_t i = entry; i < entry_end; ++i) last_col = std::max(last_col, weight.panel_col[i]);
      if (length != entry_end - entry) return "runs must cover the entries of their segment";
      if (run < run_end && last_row >= height) return "run_row must be inside its block";
      if (entry < entry_end && last_col >= width) return "panel_col must be inside its panel";
      if (panel > 0 && panel + 1 < num_panels) continue;
      // A row that is left out here would be read before it is written, or never be stored.
      std::array<bool, kMaxBlockRows> is_seen{};
      for (int64_t i = run; i < run_end; ++i) is_seen[weight.run_row[i]] = true;
      const int64_t num_rows = std::count(is_seen.begin(), is_seen.begin() + height, true);
      if (num_rows != height) return "every row must have a run in the first and the last panel";
    }
  }
  return nullptr;
}

#define SPARSECORE_INSTANTIATE(T)                                                                 \
  template void count_panel<T>(const CsrView<T>&, int64_t, int64_t, Range, int32_t*, int32_t*);   \
  template void fill_panel<T>(const CsrView<T>&, int64_t, int64_t, Range, const PanelArrays<T>&); \
  template void count_unpacked<T>(const PanelView<T>&, Range, int32_t*);                          \
  template void unpack_panel<T>(const PanelView<T>&, Range, const int32_t*, int32_t*, T*);        \
  template const char* validate_panel<T>(const PanelView<T>&, Range);
SPARSECORE_INSTANTIATE(float)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
