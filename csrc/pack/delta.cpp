#include "pack/delta.h"

#include <algorithm>
#include <vector>

#include "pack/split_evenly.h"

namespace sparsecore {
namespace {

// Beside its quads a row costs a sum over lanes and a store, as much as some quads of each lane.
constexpr int64_t kRowCost = 32;

// function(unit, panel) for the panels of a row.
template <class Function>
void for_each_unit(const DeltaShape& shape, int64_t n, Function function) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel) function(panel * shape.rows + n, panel);
}

// function(code position, column) for the entries of a unit, in order.
template <class T, class Function>
void for_each_entry(const DeltaView<T>& weight, int64_t unit, int64_t panel, Function function) {
  int64_t col = panel * kDeltaPanel;
  const int64_t end = int64_t(weight.quad_ptr[unit + 1]) * kDeltaQuad;
  for (int64_t i = int64_t(weight.quad_ptr[unit]) * kDeltaQuad; i < end; ++i) {
    col += weight.codes[i];
    if (weight.codes[i] != kDeltaSkip) function(i, col);
  }
}

template <class T>
const char* validate_unit(const DeltaView<T>& weight, int64_t unit, int64_t panel) {
  const int64_t begin = weight.quad_ptr[unit], end = weight.quad_ptr[unit + 1];
  if (begin < 0 || begin > end || end > weight.quads) return "quad_ptr must rise inside the arrays";
  const int64_t cols = delta_panel_cols(weight.cols, panel);
  int64_t col = 0, previous = -1, last_entry = begin * kDeltaQuad - 1;
  for (int64_t i = begin * kDeltaQuad; i < end * kDeltaQuad; ++i) {
    col += weight.codes[i];
    if (weight.codes[i] == kDeltaSkip) {
      if (weight.values[i] != 0) return "a code without an entry must have no value";
      continue;
    }
    if (col <= previous || col >= cols) return "columns must rise inside their panel";
    previous = col;
    last_entry = i;
  }
  if (end * kDeltaQuad - 1 - last_entry >= kDeltaQuad) return "a row must end in the quad of its last entry";
  return nullptr;
}

}  // namespace

template <class T>
void count_delta(const CsrView<T>& weight, const DeltaShape& shape, Range rows, int32_t* quad_ptr) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int64_t i = weight.row_ptr[n];
    for_each_unit(shape, n, [&](int64_t unit, int64_t panel) {
      const int64_t panel_end = (panel + 1) * kDeltaPanel;
      int64_t codes = 0;
      for (int64_t col = panel * kDeltaPanel; i < weight.row_ptr[n + 1] && weight.col_idx[i] < panel_end; ++i) {
        codes += delta_codes(weight.col_idx[i] - col);
        col = weight.col_idx[i];
      }
      quad_ptr[unit + 1] = static_cast<int32_t>((codes + kDeltaQuad - 1) / kDeltaQuad);
    });
  }
}

template <class T>
void fill_delta(const CsrView<T>& weight, const DeltaShape& shape, Range rows, const int32_t* quad_ptr, uint8_t* codes,
                T* values) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int64_t i = weight.row_ptr[n];
    for_each_unit(shape, n, [&](int64_t unit, int64_t panel) {
      const int64_t panel_end = (panel + 1) * kDeltaPanel;
      int64_t at = int64_t(quad_ptr[unit]) * kDeltaQuad;
      const int64_t end = int64_t(quad_ptr[unit + 1]) * kDeltaQuad;
      std::fill(codes + at, codes + end, static_cast<uint8_t>(kDeltaSkip));
      std::fill(values + at, values + end, T(0));
      for (int64_t col = panel * kDeltaPanel; i < weight.row_ptr[n + 1] && weight.col_idx[i] < panel_end; ++i) {
        const int64_t gap = weight.col_idx[i] - col;
        at += gap / kDeltaSkip;
        codes[at] = static_cast<uint8_t>(gap % kDeltaSkip);
        values[at++] = weight.values[i];
        col = weight.col_idx[i];
      }
    });
  }
}

template <class T>
const char* validate_delta(const DeltaView<T>& weight, Range rows) {
  const char* problem = nullptr;
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    for_each_unit(weight, n, [&](int64_t unit, int64_t panel) {
      if (problem == nullptr) problem = validate_unit(weight, unit, panel);
    });
  }
  return problem;
}

template <class T>
void count_unpacked_delta(const DeltaView<T>& weight, Range rows, int32_t* row_ptr) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int64_t count = 0;
    for_each_unit(weight, n, [&](int64_t unit, int64_t panel) {
      for_each_entry(weight, unit, panel, [&](int64_t, int64_t) { ++count; });
    });
    row_ptr[n + 1] = static_cast<int32_t>(count);
  }
}

template <class T>
void unpack_delta(const DeltaView<T>& weight, Range rows, const int32_t* row_ptr, int32_t* col_idx, T* values) {
  for (int64_t n = rows.begin; n < rows.end; ++n) {
    int64_t to = row_ptr[n];
    for_each_unit(weight, n, [&](int64_t unit, int64_t panel) {
      for_each_entry(weight, unit, panel, [&](int64_t i, int64_t col) {
        col_idx[to] = static_cast<int32_t>(col);
        values[to++] = weight.values[i];
      });
    });
  }
}

void split_delta(const int32_t* quad_ptr, int64_t units, int64_t num_blocks, int32_t* block_ptr) {
  split_evenly(quad_ptr, units, kRowCost, num_blocks, block_ptr);
}

#define SPARSECORE_INSTANTIATE(T)                                                                         \
  template void count_delta<T>(const CsrView<T>&, const DeltaShape&, Range, int32_t*);                    \
  template void fill_delta<T>(const CsrView<T>&, const DeltaShape&, Range, const int32_t*, uint8_t*, T*); \
  template const char* validate_delta<T>(const DeltaView<T>&, Range);                                     \
  template void count_unpacked_delta<T>(const DeltaView<T>&, Range, int32_t*);                            \
  template void unpack_delta<T>(const DeltaView<T>&, Range, const int32_t*, int32_t*, T*);
SPARSECORE_INSTANTIATE(uint16_t)
SPARSECORE_INSTANTIATE(int8_t)
#undef SPARSECORE_INSTANTIATE

}  // namespace sparsecore
