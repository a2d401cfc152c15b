#include <algorithm>
#include <array>
#include <vector>

#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// function(segment, panel, begin and end entry of each of the block's rows), in the order of the segments.
template <class T, class Function>
void for_each_segment(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, Function function) {
  const int64_t num_panels = std::max<int64_t>(divide_up(weight.cols, panel_cols), 1);
  std::vector<int32_t> begin(weight.row_ptr, weight.row_ptr + weight.rows), end(begin);
  int64_t segment = 0;
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t column_end = (panel + 1) * panel_cols;
    for (int64_t first = 0; first < weight.rows; first += block_rows) {
      const int64_t last = std::min(first + block_rows, weight.rows);
      for (int64_t n = first; n < last; ++n) {
        int32_t i = begin[static_cast<size_t>(n)];
        while (i < weight.row_ptr[n + 1] && weight.col_idx[i] < column_end) ++i;
        end[static_cast<size_t>(n)] = i;
      }
      const bool keeps_empty = panel == 0 || panel + 1 == num_panels;
      function(segment++, panel, Range{first, last}, keeps_empty, begin.data(), end.data());
      std::copy(end.begin() + first, end.begin() + last, begin.begin() + first);
    }
  }
}

}  // namespace

template <class T>
int64_t count_panel_runs(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols) {
  int64_t runs = 0;
  for_each_segment(weight, block_rows, panel_cols,
                   [&](int64_t, int64_t, Range rows, bool keeps_empty, const int32_t* begin, const int32_t* end) {
                     for (int64_t n = rows.begin; n < rows.end; ++n) runs += keeps_empty || end[n] > begin[n];
                   });
  return runs;
}

template <class T>
void fill_panel(const CsrView<T>& weight, int64_t block_rows, int64_t panel_cols, const PanelArrays<T>& out) {
  int64_t run = 0, entry = 0;
  out.run_ptr[0] = out.entry_ptr[0] = 0;
  for_each_segment(
      weight, block_rows, panel_cols,
      [&](int64_t segment, int64_t panel, Range rows, bool keeps_empty, const int32_t* begin, const int32_t* end) {
        // Counting sort, longest first and stable: place[length] is where the next run of that length goes.
        std::array<int64_t, kMaxPanelCols + 1> place{};
        for (int64_t n = rows.begin; n < rows.end; ++n) ++place[static_cast<size_t>(end[n] - begin[n])];
        int64_t next = 0;
        for (size_t length = place.size(); length-- > 0;) {
          const int64_t count = length == 0 && !keeps_empty ? 0 : place[length];
          place[length] = next;
          next += count;
        }
        std::array<int64_t, kMaxBlockRows> order{};
        for (int64_t n = rows.begin; n < rows.end; ++n) {
          const int32_t length = end[n] - begin[n];
          if (length > 0 || keeps_empty) order[static_cast<size_t>(place[static_cast<size_t>(length)]++)] = n;
        }
        for (int64_t i = 0; i < next; ++i, ++run) {
          const int64_t n = order[static_cast<size_t>(i)];
          out.run_row[run] = static_cast<uint8_t>(n - rows.begin);
          out.run_length[run] = static_cast<uint8_t>(end[n] - begin[n]);
          for (int32_t j = begin[n]; j < end[n]; ++j, ++entry) {
            out.panel_col[entry] = static_cast<uint8_t>(weight.col_idx[j] - panel * panel_cols);
            out.values[entry] = weight.values[j];
          }
        }
        out.run_ptr[segment + 1] = static_cast<int32_t>(run);
        out.entry_ptr[segment + 1] = static_cast<int32_t>(entry);
      });
}

template <class T>
void unpack_panel(const PanelView<T>& weight, int32_t* row_ptr, int32_t* col_idx, T* values) {
  const auto for_each_run = [&](auto function) {
    for (int64_t panel = 0, segment = 0; panel < weight.num_panels(); ++panel) {
      for (int64_t block = 0; block < weight.num_blocks(); ++block, ++segment) {
        int64_t entry = weight.entry_ptr[segment];
        for (int64_t run = weight.run_ptr[segment]; run < weight.run_ptr[segment + 1]; ++run) {
          function(block * weight.block_rows + weight.run_row[run], weight.run_length[run], entry, panel);
          entry += weight.run_length[run];
        }
      }
    }
  };
  std::fill(row_ptr, row_ptr + weight.rows + 1, 0);
  for_each_run([&](int64_t n, int64_t length, int64_t, int64_t) { row_ptr[n + 1] += static_cast<int32_t>(length); });
  for (int64_t n = 0; n < weight.rows; ++n) row_ptr[n + 1] += row_ptr[n];
  std::vector<int32_t> next(row_ptr, row_ptr + weight.rows);
  for_each_run([&](int64_t n, int64_t length, int64_t entry, int64_t panel) {
    for (int64_t i = entry; i < entry + length; ++i) {
      const int32_t to = next[static_cast<size_t>(n)]++;
      col_idx[to] = static_cast<int32_t>(panel * weight.panel_cols + weight.panel_col[i]);
      values[to] = weight.values[i];
    }
  });
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
      int64_t length = 0, num_rows = 0;
      uint8_t last_row = 0, last_col = 0;
      std::array<bool, kMaxBlockRows> is_seen{};
      for (int64_t i = run; i < run_end; ++i) {
        length += weight.run_length[i];
        last_row = std::max(last_row, weight.run_row[i]);
        num_rows += !is_seen[weight.run_row[i]];
        is_seen[weight.run_row[i]] = true;
      }
      for (int64_t i = entry; i < entry_end; ++i) last_col = std::max(last_col, weight.panel_col[i]);
      if (length != entry_end - entry) return "runs must cover the entries of their segment";
      if (run < run_end && last_row >= height) return "run_row must be inside its block";
      if (entry < entry_end && last_col >= width) return "panel_col must be inside its panel";
      const bool is_edge = panel == 0 || panel + 1 == num_panels;
      if (num_rows != run_end - run) return "a row must have one run in a segment";
      if (is_edge && num_rows != height) return "every row must have a run in the first and the last panel";
    }
  }
  return nullptr;
}

#define SPARSECORE_INSTANTIATE(T)                                                          \
  template int64_t count_panel_runs<T>(const CsrView<T>&, int64_t, int64_t);               \
  template void fill_panel<T>(const CsrView<T>&, int64_t, int64_t, const PanelArrays<T>&); \
  template void unpack_panel<T>(const PanelView<T>&, int32_t*, int32_t*, T*);              \
  template const char* validate_panel<T>(const PanelView<T>&, Range);
SPARSECORE_INSTANTIATE(float)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
