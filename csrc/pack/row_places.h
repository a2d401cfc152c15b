// The check of rows that are stored in another order, which both lookup formats have.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sparsecore/views.h"

namespace sparsecore {

// What is wrong with the places of the rows in those blocks' windows, or null.
template <class View>
const char* validate_row_places(const View& weight, Range blocks) {
  if (weight.row_place == nullptr || blocks.size() <= 0) return nullptr;
  if (weight.lanes > kLookupWindow || kLookupWindow % weight.lanes != 0) return "windows are not whole blocks";
  const int64_t first_window = blocks.begin / weight.window_blocks();
  const int64_t last_window = (blocks.end - 1) / weight.window_blocks();
  const int64_t last_row = std::min((last_window + 1) * kLookupWindow, weight.rows);
  for (int64_t row = first_window * kLookupWindow; row < last_row; ++row) {
    if (weight.row_place[row] >= kLookupWindow) return "a row is not in its window";
  }
  return nullptr;
}

}  // namespace sparsecore
