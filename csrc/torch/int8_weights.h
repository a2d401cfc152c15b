// int8 and 4-bit weights as Python's PackedInt8Weight and PackedInt4Weight hold them.
#pragma once

#include <limits>
#include <vector>

#include "sparsecore/ops.h"
#include "sparsecore/pack.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// All groups of rows of a packed weight, one after another, each in whole blocks; `first` is the view of the first.
template <class View>
struct Groups {
  View first;
  int64_t count = 1;
};

inline constexpr int64_t kMaxLanes = 16, kMaxTable = 256;

// N, K, segments, lanes, table, groups and has_safe_pairs of a packed weight, as Python holds them.
template <class View>
Groups<View> shape_of_weight(const std::vector<int64_t>& sizes) {
  check(sizes.size() == 7, "expected sizes [N, K, segments, lanes, table, groups, has_safe_pairs], got ", sizes.size(),
        " numbers");
  Groups<View> weight;
  weight.count = sizes[5];
  weight.first.cols = sizes[1];
  weight.first.segments = sizes[2];
  weight.first.lanes = sizes[3];
  const bool is_possible = sizes[0] >= 0 && sizes[0] <= std::numeric_limits<int32_t>::max() && sizes[1] >= 0 &&
                           sizes[2] >= 1 && sizes[1] % sizes[2] == 0 && sizes[3] >= 1 && sizes[3] <= kMaxLanes &&
                           sizes[4] >= 1 && sizes[4] <= kMaxTable && sizes[5] >= 1 && sizes[0] % sizes[5] == 0;
  check(is_possible, "expected possible sizes of an int8 weight; pack it again");
  check(sizes[1] <= kMaxInt8K, "expected K <= ", kMaxInt8K, " so that int32 sums are exact, got ", sizes[1]);
  weight.first.rows = sizes[0] / sizes[5];
  if constexpr (requires { weight.first.table; }) {
    weight.first.table = sizes[4];
    weight.first.has_safe_pairs = sizes[6] != 0;
  }
  return weight;
}

// N, K, lanes, table and group_size of a packed weight with 4-bit values.
inline LookupInt4View shape_of_int4(const std::vector<int64_t>& sizes) {
  check(sizes.size() == 5, "expected sizes [N, K, lanes, table, group_size], got ", sizes.size(), " numbers");
  LookupInt4View view;
  view.rows = sizes[0];
  view.cols = sizes[1];
  view.lanes = sizes[2];
  view.table = sizes[3];
  view.group_cols = sizes[4];
  const bool is_possible = view.rows >= 0 && view.rows <= std::numeric_limits<int32_t>::max() && view.cols >= 0 &&
                           view.lanes >= 1 && view.lanes <= kMaxLanes && view.table >= 16 && view.table <= kMaxTable &&
                           view.group_cols >= view.table && view.group_cols <= kMaxGroupCols &&
                           view.group_cols % view.table == 0;
  check(is_possible, "expected possible sizes of a 4-bit weight; pack it again");
  check(view.cols <= kMaxInt8K, "expected K <= ", kMaxInt8K, ", got ", view.cols);
  return view;
}

inline const Tensor& packed_tensor(const std::vector<Tensor>& tensors, size_t index, ScalarType dtype, int64_t numel) {
  const Tensor& tensor = tensors[index];
  check_tensor(tensor, "a packed tensor", dtype, 1);
  check(tensor.numel() == numel, "expected ", numel, " numbers in packed tensor ", index, ", got ", tensor.numel(),
        "; pack the weight again");
  return tensor;
}

inline void check_count(const std::vector<Tensor>& tensors, size_t count) {
  check(tensors.size() == count, "expected ", count, " packed tensors, got ", tensors.size());
}

template <class View>
Groups<View> packed_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes);

template <>
inline Groups<Int8View> packed_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  auto weight = shape_of_weight<Int8View>(sizes);
  check_count(tensors, 1);
  const int64_t bytes = weight.count * weight.first.num_blocks() * weight.first.block_bytes();
  weight.first.values = packed_tensor(tensors, 0, ScalarType::Char, bytes).const_data_ptr<int8_t>();
  return weight;
}

template <>
inline Groups<BitmapInt8View> packed_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  auto weight = shape_of_weight<BitmapInt8View>(sizes);
  check_count(tensors, 3);
  BitmapInt8View& view = weight.first;
  check(view.lanes % 2 == 0, "expected an even number of lanes, got ", view.lanes);
  const int64_t blocks = weight.count * view.num_blocks();
  view.masks = packed_tensor(tensors, 0, ScalarType::Byte, blocks * view.block_bytes() / 8).const_data_ptr<uint8_t>();
  view.value_ptr = packed_tensor(tensors, 1, ScalarType::Int, blocks + 1).const_data_ptr<int32_t>();
  check_tensor(tensors[2], "values", ScalarType::Char, 1);
  view.nnz = tensors[2].numel() - kReadBeyond;
  check(view.nnz >= 0, "expected values with ", kReadBeyond, " bytes after them; pack the weight again");
  view.values = tensors[2].const_data_ptr<int8_t>();
  return weight;
}

template <>
inline Groups<LookupView> packed_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  auto weight = shape_of_weight<LookupView>(sizes);
  check_count(tensors, 6);
  LookupView& view = weight.first;
  const int64_t blocks = weight.count * view.num_blocks();
  view.entry_ptr = packed_tensor(tensors, 0, ScalarType::Int, blocks + 1).const_data_ptr<int32_t>();
  view.step_ptr = packed_tensor(tensors, 1, ScalarType::Int, blocks + 1).const_data_ptr<int32_t>();
  view.num_entries = tensors[2].numel();
  view.entry_group =
      static_cast<const uint16_t*>(packed_tensor(tensors, 2, ScalarType::Short, view.num_entries).const_data_ptr());
  view.entry_steps = packed_tensor(tensors, 3, ScalarType::Byte, view.num_entries).const_data_ptr<uint8_t>();
  check_tensor(tensors[4], "slots", ScalarType::Byte, 1);
  view.num_steps = tensors[4].numel() / (2 * view.quad_bytes());
  view.slots = tensors[4].const_data_ptr<uint8_t>();
  check_tensor(tensors[5], "row_place", ScalarType::Byte, 1);
  if (tensors[5].numel() > 0) {
    view.row_place = packed_tensor(tensors, 5, ScalarType::Byte, weight.count * view.rows).const_data_ptr<uint8_t>();
  }
  return weight;
}

// Without its scales and sums, which operations take beside it.
template <>
inline Groups<LookupInt4View> packed_weight(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  Groups<LookupInt4View> weight{shape_of_int4(sizes)};
  check_count(tensors, 6);
  LookupInt4View& view = weight.first;
  const int64_t blocks = view.num_blocks();
  view.entry_ptr = packed_tensor(tensors, 0, ScalarType::Int, blocks * view.groups() + 1).const_data_ptr<int32_t>();
  view.step_ptr = packed_tensor(tensors, 1, ScalarType::Int, blocks + 1).const_data_ptr<int32_t>();
  view.num_entries = tensors[2].numel();
  view.entry_table = packed_tensor(tensors, 2, ScalarType::Byte, view.num_entries).const_data_ptr<uint8_t>();
  view.entry_steps = packed_tensor(tensors, 3, ScalarType::Byte, view.num_entries).const_data_ptr<uint8_t>();
  check_tensor(tensors[4], "slots", ScalarType::Byte, 1);
  view.num_steps = tensors[4].numel() / view.quad_bytes();
  view.slots = tensors[4].const_data_ptr<uint8_t>();
  check_tensor(tensors[5], "row_place", ScalarType::Byte, 1);
  if (tensors[5].numel() > 0) {
    view.row_place = packed_tensor(tensors, 5, ScalarType::Byte, view.rows).const_data_ptr<uint8_t>();
  }
  return weight;
}

inline Int8View group_of(Int8View view, int64_t group) {
  view.values += group * view.num_blocks() * view.block_bytes();
  return view;
}
inline BitmapInt8View group_of(BitmapInt8View view, int64_t group) {
  view.masks += group * view.num_blocks() * view.block_bytes() / 8;
  view.value_ptr += group * view.num_blocks();
  return view;
}
inline LookupView group_of(LookupView view, int64_t group) {
  view.entry_ptr += group * view.num_blocks();
  view.step_ptr += group * view.num_blocks();
  if (view.row_place != nullptr) view.row_place += group * view.rows;
  return view;
}

inline LookupInt4View group_of(const LookupInt4View& view, int64_t) { return view; }

// What run_kernel() splits and validates, and what a position costs in float multiply-adds (int8 dot products do about
// eight in the time of one; lookups and expansions take longer).
struct Int8Rows {
  static constexpr const char* kFormat = "int8";
  Int8View weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = nullptr;
  const char* validate(Range) const { return nullptr; }
  int64_t work() const { return rows * weight.block_bytes() / 8; }
};
struct BitmapInt8Rows {
  static constexpr const char* kFormat = "bitmap";
  BitmapInt8View weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = nullptr;
  const char* validate(Range blocks) const {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      if (weight.value_ptr[block] < 0 || weight.value_ptr[block] > weight.nnz) return "value_ptr is out of range";
    }
    return nullptr;
  }
  int64_t work() const { return rows * weight.block_bytes() / 6; }
};
struct LookupRows {
  static constexpr const char* kFormat = "lookup";
  LookupView weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = weight.step_ptr;
  const char* validate(Range blocks) const { return validate_lookup(weight, blocks); }
  int64_t work() const { return weight.num_steps * weight.quad_bytes() / 6; }
};
struct LookupInt4Rows {
  static constexpr const char* kFormat = "lookup4";
  LookupInt4View weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = weight.step_ptr;
  const char* validate(Range blocks) const { return validate_lookup_int4(weight, blocks); }
  int64_t work() const { return weight.num_steps * weight.quad_bytes() / 4; }
};
inline Int8Rows rows_of(const Int8View& view) { return {view}; }
inline BitmapInt8Rows rows_of(const BitmapInt8View& view) { return {view}; }
inline LookupRows rows_of(const LookupView& view) { return {view}; }
inline LookupInt4Rows rows_of(const LookupInt4View& view) { return {view}; }

}  // namespace sparsecore::torch_binding
