// Untrusted arrays as views of validated contents, on torch's threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "sparsecore/pack.h"
#include "torch/checks.h"
#include "torch/parallel.h"

namespace sparsecore::torch_binding {

// The first text that validate(range) returns for a part of [0, count); null if all are in order.
template <class Validate>
const char* find_problem(int64_t count, int64_t work, Validate validate) {
  std::atomic<const char*> problem = nullptr;
  for_parts(count, work, [&](Range part) {
    if (const char* text = validate(part)) problem = text;
  });
  return problem;
}

// A view with validated contents.
template <class T>
CsrView<T> validated_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  check_tensor(row_ptr, "row_ptr", ScalarType::Int, 1);
  check_tensor(col_idx, "col_idx", ScalarType::Int, 1);
  check_tensor(values, "values", values.scalar_type(), 1);
  check(row_ptr.numel() >= 1 && col_idx.numel() == values.numel() && cols >= 0,
        "expected row_ptr [N + 1], as many col_idx as values, and K >= 0");
  const CsrView<T> view{row_ptr.numel() - 1,
                        cols,
                        values.numel(),
                        row_ptr.const_data_ptr<int32_t>(),
                        col_idx.const_data_ptr<int32_t>(),
                        static_cast<const T*>(values.const_data_ptr())};
  const char* text = find_problem(view.rows, view.nnz / std::max<int64_t>(view.rows, 1), [&](Range rows) {
    return validate_csr(cols, view.nnz, view.row_ptr, view.col_idx, rows);
  });
  if (text == nullptr && (view.row_ptr[0] != 0 || view.row_ptr[view.rows] != view.nnz)) {
    text = "row_ptr must rise from 0 to nnz";
  }
  if (text != nullptr) fail("invalid CSR weight: ", text);
  return view;
}

}  // namespace sparsecore::torch_binding
