// Dense int8 weights in the forms that the int8 kernels take, in guarded buffers: one specialization per view.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "guarded.h"
#include "random.h"
#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {

inline std::string packing_name(Int8Packing packing) {
  return std::to_string(packing.lanes) + " lanes, table of " + std::to_string(packing.table) +
         (packing.has_safe_pairs ? ", safe pairs" : "");
}

inline std::vector<Int8Packing> all_int8_packings() {
  std::vector<Int8Packing> result;
  for (const int64_t lanes : {4, 8, 16}) {
    for (const int64_t table : {16, 64, 256}) {
      for (const bool has_safe_pairs : {false, true}) result.push_back({lanes, table, has_safe_pairs});
    }
  }
  return result;
}

// Of those, the ones that differ for a kernel and that it supports.
template <class Args>
std::vector<Int8Packing> int8_packings_of(const Kernel<Args>& kernel) {
  std::vector<Int8Packing> result;
  for (const Int8Packing packing : all_int8_packings()) {
    Args args;
    args.weight.lanes = packing.lanes;
    if constexpr (requires { args.weight.table; }) {
      args.weight.table = packing.table;
      args.weight.has_safe_pairs = packing.has_safe_pairs;
    } else if (packing.table != 16 || packing.has_safe_pairs) {
      continue;
    }
    if (kernel.supports(args)) result.push_back(packing);
  }
  return result;
}

// weight[N, K], K in segments.
struct DenseInt8 {
  int64_t rows = 0, cols = 0, segments = 1;
  std::vector<int8_t> values;

  int8_t at(int64_t n, int64_t k) const { return values[static_cast<size_t>(n * cols + k)]; }
};

// Entries are non-zero with a probability; lowest and highest are included.
inline DenseInt8 random_int8(Random& random, int64_t rows, int64_t cols, int64_t segments, double density,
                             int64_t lowest = -128, int64_t highest = 127) {
  DenseInt8 weight{rows, cols, segments, std::vector<int8_t>(static_cast<size_t>(rows * cols))};
  for (int8_t& value : weight.values) {
    while (value == 0 && random.chance(density)) value = static_cast<int8_t>(random.integer(lowest, highest));
  }
  return weight;
}

template <class View>
View int8_shape(const DenseInt8& weight, Int8Packing packing) {
  View view;
  view.rows = weight.rows;
  view.cols = weight.cols;
  view.segments = weight.segments;
  view.lanes = packing.lanes;
  if constexpr (requires { view.table; }) {
    view.table = packing.table;
    view.has_safe_pairs = packing.has_safe_pairs;
  }
  return view;
}

// [num_blocks, segments, quads, lanes, 4] as views.h draws it, by its plain definition.
inline std::vector<int8_t> in_quads(const DenseInt8& weight, int64_t lanes) {
  const int64_t segment_cols = weight.cols / weight.segments;
  std::vector<int8_t> result;
  for (int64_t block = 0; block * lanes < weight.rows; ++block) {
    for (int64_t s = 0; s < weight.segments; ++s) {
      for (int64_t quad = 0; 4 * quad < segment_cols; ++quad) {
        for (int64_t i = 0; i < 4 * lanes; ++i) {
          const int64_t n = block * lanes + i / 4, k = 4 * quad + i % 4;
          const bool is_inside = n < weight.rows && k < segment_cols;
          result.push_back(is_inside ? weight.at(n, s * segment_cols + k) : int8_t(0));
        }
      }
    }
  }
  return result;
}

template <class View>
class PackedInt8;

template <>
class PackedInt8<Int8View> {
 public:
  PackedInt8(const DenseInt8& weight, Int8Packing packing, Guard guard)
      : values(in_quads(weight, packing.lanes), guard), view_(int8_shape<Int8View>(weight, packing)) {}

  Int8View view() const {
    Int8View view = view_;
    view.values = values.data();
    return view;
  }

  Buffer<int8_t> values;

 private:
  Int8View view_;
};

template <>
class PackedInt8<BitmapInt8View> {
 public:
  PackedInt8(const DenseInt8& weight, Int8Packing packing, Guard guard)
      : PackedInt8(bitmap_of(weight, packing.lanes), int8_shape<BitmapInt8View>(weight, packing), guard) {}

  BitmapInt8View view() const {
    BitmapInt8View view = view_;
    view.masks = masks.data();
    view.value_ptr = value_ptr.data();
    view.values = values.data();
    return view;
  }

  Buffer<uint8_t> masks;  // so that tests can damage them
  Buffer<int32_t> value_ptr;
  Buffer<int8_t> values;

 private:
  struct Bitmap {
    std::vector<uint8_t> masks;
    std::vector<int32_t> value_ptr{0};
    std::vector<int8_t> values;
  };

  static Bitmap bitmap_of(const DenseInt8& weight, int64_t lanes) {
    const std::vector<int8_t> quads = in_quads(weight, lanes);
    const size_t num_blocks = static_cast<size_t>((weight.rows + lanes - 1) / lanes);
    const size_t block_bytes = num_blocks == 0 ? 0 : quads.size() / num_blocks;
    Bitmap result;
    result.masks.resize(quads.size() / 8);
    for (size_t block = 0; block < num_blocks; ++block) {
      for (size_t i = block * block_bytes; i < (block + 1) * block_bytes; ++i) {
        if (quads[i] == 0) continue;
        result.masks[i / 8] = static_cast<uint8_t>(result.masks[i / 8] | 1 << i % 8);
        result.values.push_back(quads[i]);
      }
      result.value_ptr.push_back(static_cast<int32_t>(result.values.size()));
    }
    result.values.resize(result.values.size() + size_t(kReadBeyond), int8_t(-77));  // no weights
    return result;
  }

  PackedInt8(const Bitmap& bitmap, BitmapInt8View view, Guard guard)
      : masks(bitmap.masks, guard), value_ptr(bitmap.value_ptr, guard), values(bitmap.values, guard), view_(view) {
    view_.nnz = values.size() - kReadBeyond;
  }

  BitmapInt8View view_;
};

// A random order of the rows inside of their windows.
inline std::vector<uint8_t> random_places(Random& random, int64_t rows) {
  std::vector<uint8_t> place(static_cast<size_t>(rows));
  for (int64_t begin = 0; begin < rows; begin += kLookupWindow) {
    for (int64_t i = 0; i < std::min(kLookupWindow, rows - begin); ++i) {
      const int64_t other = random.integer(0, i);
      place[static_cast<size_t>(begin + i)] = place[static_cast<size_t>(begin + other)];
      place[static_cast<size_t>(begin + other)] = static_cast<uint8_t>(i);
    }
  }
  return place;
}

// By the library itself, which tests/cpp/pack/lookup_test.cpp checks.
template <>
class PackedInt8<LookupView> {
 public:
  PackedInt8(const DenseInt8& weight, Int8Packing packing, Guard guard)
      : PackedInt8(weight, {}, Pointers(weight, packing), packing, guard) {}

  // Rows stored in another order: place[r] is where row r stands in its window.
  PackedInt8(const DenseInt8& weight, const std::vector<uint8_t>& place, Int8Packing packing, Guard guard)
      : PackedInt8(put_in_places(weight, place), place, Pointers(put_in_places(weight, place), packing), packing,
                   guard) {}

  LookupView view() const {
    LookupView view = view_;
    view.entry_ptr = entry_ptr.data();
    view.step_ptr = step_ptr.data();
    view.num_entries = entry_group.size();
    view.num_steps = slots.size() / (2 * view.quad_bytes());
    view.entry_group = entry_group.data();
    view.entry_steps = entry_steps.data();
    view.slots = slots.data();
    view.row_place = row_place.size() == 0 ? nullptr : row_place.data();
    return view;
  }

  Buffer<int32_t> entry_ptr, step_ptr;  // so that tests can damage them
  Buffer<uint16_t> entry_group;
  Buffer<uint8_t> entry_steps, slots, row_place;

 private:
  struct Pointers {
    std::vector<int32_t> entries, steps;
    int64_t num_entries, num_steps;

    Pointers(const DenseInt8& weight, Int8Packing packing) {
      const auto shape = int8_shape<LookupView>(weight, packing);
      const int64_t num_blocks = shape.num_blocks();
      entries.resize(static_cast<size_t>(num_blocks) + 1);
      steps = entries;
      const Buffer<int8_t> dense(weight.values, Guard::kAfter);
      count_lookup(dense.data(), shape, {0, num_blocks}, entries.data(), steps.data());
      num_entries = running_sum(entries.data(), num_blocks);
      num_steps = running_sum(steps.data(), num_blocks);
    }
  };

  static DenseInt8 put_in_places(const DenseInt8& weight, const std::vector<uint8_t>& place) {
    DenseInt8 stored = weight;
    for (int64_t n = 0; n < weight.rows; ++n) {
      const int64_t to = n - n % kLookupWindow + place[static_cast<size_t>(n)];
      std::copy_n(weight.values.begin() + n * weight.cols, weight.cols, stored.values.begin() + to * weight.cols);
    }
    return stored;
  }

  PackedInt8(const DenseInt8& weight, const std::vector<uint8_t>& place, const Pointers& pointers, Int8Packing packing,
             Guard guard)
      : entry_ptr(pointers.entries, guard),
        step_ptr(pointers.steps, guard),
        entry_group(pointers.num_entries, guard),
        entry_steps(pointers.num_entries, guard),
        slots(pointers.num_steps * 8 * packing.lanes, guard),
        row_place(place, guard),
        view_(int8_shape<LookupView>(weight, packing)) {
    const Buffer<int8_t> dense(weight.values, guard);
    fill_lookup(dense.data(), view_, {0, view_.num_blocks()},
                {entry_ptr.data(), step_ptr.data(), entry_group.data(), entry_steps.data(), slots.data()});
  }

  LookupView view_;
};

}  // namespace sparsecore::test
