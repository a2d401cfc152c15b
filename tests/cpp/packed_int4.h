// Integers of 4 bits in the form that the lookup kernels take, in guarded buffers.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

#include "guarded.h"
#include "packed_int8.h"
#include "random.h"
#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {

struct Int4Packing {
  int64_t lanes, table, group_cols;
};
inline std::ostream& operator<<(std::ostream& out, Int4Packing packing) {
  return out << packing.lanes << " lanes, table of " << packing.table << ", groups of " << packing.group_cols;
}

inline std::vector<Int4Packing> all_int4_packings() {
  std::vector<Int4Packing> result;
  for (const int64_t lanes : {4, 8, 16}) {
    for (const int64_t table : {16, 64, 128, 256}) {
      for (const int64_t tables : {1, 3, 8}) result.push_back({lanes, table, tables * table});
    }
  }
  return result;
}

// Those that a kernel supports.
inline std::vector<Int4Packing> int4_packings_of(const Kernel<LookupInt4Args>& kernel) {
  std::vector<Int4Packing> result;
  for (const Int4Packing packing : all_int4_packings()) {
    LookupInt4Args args;
    args.weight.lanes = packing.lanes;
    args.weight.table = packing.table;
    if (kernel.supports(args)) result.push_back(packing);
  }
  return result;
}

// Scales are those of groups of the rows as they are stored, [rows, groups]; see all_scales().
class PackedInt4 {
 public:
  PackedInt4(const DenseInt8& weight, const std::vector<float>& scale, Int4Packing packing, Guard guard,
             const std::vector<uint8_t>& place = {})
      : PackedInt4(weight, scale, place, Counts(weight, shape_of(weight, packing)), shape_of(weight, packing), guard) {}

  LookupInt4View view() const {
    LookupInt4View view = view_;
    view.num_entries = entry_table.size();
    view.num_steps = slots.size() / view.quad_bytes();
    view.entry_ptr = entry_ptr.data();
    view.step_ptr = step_ptr.data();
    view.entry_table = entry_table.data();
    view.entry_steps = entry_steps.data();
    view.slots = slots.data();
    view.group_scale = group_scale.data();
    view.group_sum = group_sum.data();
    view.row_place = row_place.size() == 0 ? nullptr : row_place.data();
    return view;
  }

  Buffer<int32_t> entry_ptr, step_ptr;  // so that tests can damage them
  Buffer<uint8_t> entry_table, entry_steps, slots, row_place;
  Buffer<float> group_scale;
  Buffer<int16_t> group_sum;

 private:
  static LookupInt4View shape_of(const DenseInt8& weight, Int4Packing packing) {
    LookupInt4View view;
    view.rows = weight.rows;
    view.cols = weight.cols;
    view.lanes = packing.lanes;
    view.table = packing.table;
    view.group_cols = packing.group_cols;
    return view;
  }

  struct Counts {
    std::vector<int32_t> entries, steps;
    int64_t num_entries, num_steps;

    Counts(const DenseInt8& weight, const LookupInt4View& shape) {
      const int64_t blocks = shape.num_blocks(), groups = blocks * shape.groups();
      entries.resize(static_cast<size_t>(groups) + 1);
      steps.resize(static_cast<size_t>(blocks) + 1);
      const Buffer<int8_t> dense(weight.values, Guard::kAfter);
      count_lookup_int4(dense.data(), shape, {0, blocks}, entries.data(), steps.data());
      num_entries = running_sum(entries.data(), groups);
      num_steps = running_sum(steps.data(), blocks);
    }
  };

  PackedInt4(const DenseInt8& weight, const std::vector<float>& scale, const std::vector<uint8_t>& place,
             const Counts& counts, const LookupInt4View& shape, Guard guard)
      : entry_ptr(counts.entries, guard),
        step_ptr(counts.steps, guard),
        entry_table(counts.num_entries, guard),
        entry_steps(counts.num_entries, guard),
        slots(counts.num_steps * shape.quad_bytes(), guard),
        row_place(place, guard),
        group_scale(shape.num_blocks() * shape.groups() * shape.lanes, guard),
        group_sum(shape.num_blocks() * shape.groups() * shape.lanes, guard),
        view_(shape) {
    const Buffer<int8_t> dense(weight.values, guard);
    fill_lookup_int4(dense.data(), shape, {0, shape.num_blocks()},
                     {entry_ptr.data(), step_ptr.data(), entry_table.data(), entry_steps.data(), slots.data()});
    for (int64_t i = 0; i < group_scale.size(); ++i) {
      const int64_t group = i / shape.lanes % shape.groups();
      const int64_t row = i / shape.lanes / shape.groups() * shape.lanes + i % shape.lanes;
      group_scale[i] = 0.0f;
      group_sum[i] = 0;
      if (row >= shape.rows) continue;
      group_scale[i] = scale[static_cast<size_t>(row * shape.groups() + group)];
      const int64_t last = std::min((group + 1) * shape.group_cols, shape.cols);
      for (int64_t k = group * shape.group_cols; k < last; ++k) {
        group_sum[i] = static_cast<int16_t>(group_sum[i] + weight.at(row, k));
      }
    }
  }

  LookupInt4View view_;
};

inline std::vector<float> random_scales(Random& random, int64_t rows, int64_t cols, int64_t group_cols) {
  std::vector<float> result(static_cast<size_t>(rows * ((cols + group_cols - 1) / group_cols)));
  for (float& scale : result) scale = 0.01f + 0.005f * random.number();
  return result;
}

}  // namespace sparsecore::test
