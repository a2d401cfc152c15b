// A CSR weight in the form that a kernel takes, in guarded buffers: one specialization per view.
#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "csr.h"
#include "guarded.h"
#include "harness.h"
#include "sparsecore/pack.h"
#include "sparsecore/views.h"

namespace sparsecore::test {

// What formats are free to choose; each reads its own.
struct Packing {
  int64_t block_rows = 8, panel_cols = 16;
};

template <class View>
class PackedWeight;

template <class T>
class PackedWeight<CsrView<T>> {
 public:
  PackedWeight(const Csr<T>& csr, Packing, Guard guard) : csr_(csr, guard) {}
  CsrView<T> view() const { return csr_.view(); }
  int64_t num_rows() const { return csr_.rows; }  // what the rows argument of run counts

 private:
  GuardedCsr<T> csr_;
};

template <class T>
class PackedWeight<PanelView<T>> {
 public:
  PackedWeight(const Csr<T>& csr, Packing packing, Guard guard)
      : PackedWeight(csr, sizes_of(csr, packing), guard, nullptr) {}

  PanelView<T> view() const {
    PanelView<T> result = sizes_;
    result.run_ptr = run_ptr.data();
    result.entry_ptr = entry_ptr.data();
    result.run_row = run_row.data();
    result.run_length = run_length.data();
    result.panel_col = panel_col.data();
    result.values = values.data();
    return result;
  }
  int64_t num_rows() const { return sizes_.num_blocks(); }

 private:
  static PanelView<T> sizes_of(const Csr<T>& csr, Packing packing) {
    PanelView<T> sizes{.rows = csr.rows, .cols = csr.cols, .nnz = csr.nnz()};
    sizes.block_rows = packing.block_rows;
    sizes.panel_cols = packing.panel_cols;
    std::vector<int32_t> run_ptr(static_cast<size_t>(sizes.num_segments()) + 1), entry_ptr(run_ptr);
    count_panel(csr.view(), packing.block_rows, packing.panel_cols, {0, sizes.num_blocks()}, run_ptr.data(),
                entry_ptr.data());
    sizes.num_runs = running_sum(run_ptr.data(), sizes.num_segments());
    return sizes;
  }

  PackedWeight(const Csr<T>& csr, const PanelView<T>& sizes, Guard guard, std::nullptr_t)
      : run_ptr(sizes.num_segments() + 1, guard),
        entry_ptr(sizes.num_segments() + 1, guard),
        run_row(sizes.num_runs, guard),
        run_length(sizes.num_runs, guard),
        panel_col(sizes.nnz, guard),
        values(sizes.nnz, guard),
        sizes_(sizes) {
    const GuardedCsr<T> source(csr, guard);
    const Range blocks{0, sizes.num_blocks()};
    count_panel(source.view(), sizes.block_rows, sizes.panel_cols, blocks, run_ptr.data(), entry_ptr.data());
    running_sum(run_ptr.data(), sizes.num_segments());
    running_sum(entry_ptr.data(), sizes.num_segments());
    fill_panel<T>(
        source.view(), sizes.block_rows, sizes.panel_cols, blocks,
        {run_ptr.data(), entry_ptr.data(), run_row.data(), run_length.data(), panel_col.data(), values.data()});
  }

 public:  // so that tests can damage them
  Buffer<int32_t> run_ptr, entry_ptr;
  Buffer<uint8_t> run_row, run_length, panel_col;
  Buffer<T> values;

 private:
  PanelView<T> sizes_;
};

// Calls function(kernel, arguments that hold the weight, what its rows argument counts) for the row in `any`.
template <class... Args, class Function>
void with_packed(const AnyKernel<Args...>& any, const Csr<float>& csr, Packing packing, Guard guard,
                 Function function) {
  const auto visit = [&](const auto& kernel) {
    decltype(args_of(kernel)) args;
    const PackedWeight<decltype(args.weight)> weight(csr, packing, guard);
    args.weight = weight.view();
    function(kernel, args, weight.num_rows());
  };
  std::visit(visit, any.row);
}

}  // namespace sparsecore::test
