#include <algorithm>
#include <array>
#include <limits>

#include "sparsecore/pack.h"

namespace sparsecore {
namespace {

// function(column, entry of each of the block's rows or -1) for the columns of a block, ascending.
template <class T, class Function>
void for_each_column(const CsrView<T>& weight, int64_t block_rows, int64_t block, Function function) {
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  std::array<int32_t, kMaxBlockCsrRows> next{}, end{}, entries{};
  const auto size = static_cast<size_t>(block_rows);
  for (size_t r = 0; r < size; ++r) {
    next[r] = weight.row_ptr[block * block_rows + int64_t(r)];
    end[r] = weight.row_ptr[block * block_rows + int64_t(r) + 1];
  }
  while (true) {
    int32_t column = kNone;
    for (size_t r = 0; r < size; ++r) {
      if (next[r] < end[r]) column = std::min(column, weight.col_idx[next[r]]);
    }
    if (column == kNone) return;
    for (size_t r = 0; r < size; ++r) {
      const bool has_it = next[r] < end[r] && weight.col_idx[next[r]] == column;
      entries[r] = has_it ? next[r]++ : -1;
    }
    function(column, entries);
  }
}

}  // namespace

template <class T>
void count_block_csr(const CsrView<T>& weight, int64_t block_rows, Range blocks, int32_t* block_ptr) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    int32_t count = 0;
    for_each_column(weight, block_rows, block, [&](int32_t, const auto&) { ++count; });
    block_ptr[block + 1] = count;
  }
}

template <class T>
void fill_block_csr(const CsrView<T>& weight, int64_t block_rows, Range blocks, const int32_t* block_ptr,
                    int32_t* col_idx, T* values) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    int64_t i = block_ptr[block];
    for_each_column(weight, block_rows, block, [&](int32_t column, const auto& entries) {
      col_idx[i] = column;
      for (int64_t r = 0; r < block_rows; ++r) {
        const int32_t entry = entries[static_cast<size_t>(r)];
        values[i * block_rows + r] = entry < 0 ? T{} : weight.values[entry];
      }
      ++i;
    });
  }
}

template void count_block_csr<float>(const CsrView<float>&, int64_t, Range, int32_t*);
template void fill_block_csr<float>(const CsrView<float>&, int64_t, Range, const int32_t*, int32_t*, float*);

}  // namespace sparsecore
