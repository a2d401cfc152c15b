// Random layers for the benchmarks: activations, and weights in the form that each kernel takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "sparsecore/ops.h"
#include "sparsecore/codebook.h"
#include "sparsecore/jit.h"
#include "sparsecore/pack.h"

namespace sparsecore {

inline std::vector<float> random_floats(int64_t size) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> result(static_cast<size_t>(size));
  for (float& value : result) value = uniform(random);
  return result;
}

// Every entry, or column of block_rows neighbouring entries, is kept with the same probability.
template <class T>
struct Csr {
  std::vector<int32_t> row_ptr{0}, col_idx;
  std::vector<T> values;
  CsrView<T> view;

  Csr(int64_t N, int64_t K, double sparsity, int64_t block_rows = 1) {
    std::mt19937 random(2);
    std::bernoulli_distribution keep(1.0 - sparsity);
    std::uniform_int_distribution<int> value(-127, 127);
    std::vector<bool> kept(static_cast<size_t>(K));
    for (int64_t n = 0; n < N; ++n) {
      if (n % block_rows == 0) std::generate(kept.begin(), kept.end(), [&] { return keep(random); });
      for (int64_t k = 0; k < K; ++k) {
        if (!kept[static_cast<size_t>(k)]) continue;
        col_idx.push_back(static_cast<int32_t>(k));
        values.push_back(static_cast<T>(value(random)));
      }
      row_ptr.push_back(static_cast<int32_t>(values.size()));
    }
    view = {N, K, static_cast<int64_t>(values.size()), row_ptr.data(), col_idx.data(), values.data()};
  }
  double flops(int64_t columns) const { return 2.0 * double(view.nnz) * double(columns); }
};

// Columns of a panel are a multiple of taps.
struct Packing {
  int64_t taps = 0, block_rows = 1;  // side of a convolution's filter
};

// A weight in the form that a kernel takes; rows: what the rows argument of run counts.
template <class View>
struct Packed;

template <>
struct Packed<CsrView<float>> {
  CsrView<float> view;
  int64_t rows;

  Packed(const Csr<float>& csr, Packing) : view(csr.view), rows(csr.view.rows) {}
};

template <>
struct Packed<BlockCsrView<float>> {
  BlockCsrView<float> view;
  int64_t rows;
  std::vector<int32_t> block_ptr, block_col;
  std::vector<float> values;

  Packed(const Csr<float>& csr, Packing packing) {
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.block_rows = packing.block_rows;
    rows = view.num_blocks();
    block_ptr.resize(static_cast<size_t>(rows) + 1);
    count_block_csr(csr.view, view.block_rows, {0, rows}, block_ptr.data());
    view.nnz = running_sum(block_ptr.data(), rows);
    block_col.resize(static_cast<size_t>(view.nnz));
    values.resize(static_cast<size_t>(view.nnz * view.block_rows));
    fill_block_csr(csr.view, view.block_rows, {0, rows}, block_ptr.data(), block_col.data(), values.data());
    view.row_ptr = block_ptr.data();
    view.col_idx = block_col.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

template <>
struct Packed<PanelView<float>> {
  PanelView<float> view;
  int64_t rows;
  std::vector<int32_t> run_ptr, entry_ptr;
  std::vector<uint8_t> run_row, run_length, panel_col;
  std::vector<float> values;

  // Blocks of 64 rows and panels of about 80 columns, the sizes that the Python package takes.
  Packed(const Csr<float>& csr, Packing packing) {
    constexpr int64_t kBlockRows = 64, kPanelCols = 80;
    const int64_t taps = std::max<int64_t>(packing.taps * packing.taps, 1);
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.nnz = csr.view.nnz;
    view.block_rows = kBlockRows;
    view.panel_cols = std::max<int64_t>(kPanelCols / taps, 1) * taps;
    rows = view.num_blocks();
    run_ptr.resize(static_cast<size_t>(view.num_segments()) + 1);
    entry_ptr.resize(run_ptr.size());
    count_panel(csr.view, view.block_rows, view.panel_cols, {0, rows}, run_ptr.data(), entry_ptr.data());
    running_sum(entry_ptr.data(), view.num_segments());
    view.num_runs = running_sum(run_ptr.data(), view.num_segments());
    run_row.resize(static_cast<size_t>(view.num_runs));
    run_length.resize(run_row.size());
    panel_col.resize(static_cast<size_t>(view.nnz));
    values.resize(panel_col.size());
    fill_panel<float>(
        csr.view, view.block_rows, view.panel_cols, {0, rows},
        {run_ptr.data(), entry_ptr.data(), run_row.data(), run_length.data(), panel_col.data(), values.data()});
    view.run_ptr = run_ptr.data();
    view.entry_ptr = entry_ptr.data();
    view.run_row = run_row.data();
    view.run_length = run_length.data();
    view.panel_col = panel_col.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

// There must be a generator: its kernels are enabled only then.
template <>
struct Packed<JitView> {
  std::shared_ptr<const JitProgram> program;
  JitView view;
  int64_t rows;

  Packed(const Csr<float>& csr, Packing packing)
      : program(JitProgram::generate(csr.view, packing.taps, packing.taps)),
        view(program->view()),
        rows(view.num_blocks()) {}
};

template <>
struct Packed<BitmapView> {
  BitmapView view;
  int64_t rows;
  std::vector<int32_t> block_ptr;
  std::vector<uint16_t> masks;
  std::vector<float> values;

  Packed(const Csr<float>& csr, Packing) {
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.nnz = csr.view.nnz;
    rows = view.num_blocks();
    block_ptr.resize(static_cast<size_t>(rows) + 1);
    masks.resize(static_cast<size_t>(rows * view.cols));
    values.resize(static_cast<size_t>(view.nnz + kBitmapSlack));
    fill_bitmap<float>(csr.view, {0, rows}, {block_ptr.data(), masks.data(), values.data()});
    view.block_ptr = block_ptr.data();
    view.masks = masks.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

// Codes and gaps of 4 bits, as in EIE; the values are any 15 in turn.
template <>
struct Packed<CodebookView> {
  CodebookView view;
  int64_t rows;
  std::vector<float> codebook{0.0f};  // of fillers
  std::vector<uint8_t> codes, gaps, segment_zeros;
  std::vector<int32_t> segment_ptr;

  Packed(const Csr<float>& csr, Packing) {
    constexpr int64_t kValues = 15, kStep = 16;
    for (int64_t value = 1; value <= kValues; ++value) codebook.push_back(0.1f * float(value));
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.bits = view.gap_bits = 4;
    view.block_rows = kMaxCodebookBlockRows;
    rows = view.num_blocks();
    std::vector<int64_t> ends;  // position behind each entry
    const auto add = [&](int64_t gap, int64_t code) {
      const auto shift = 4 * (view.nnz % 2);
      if (shift == 0) {
        codes.push_back(0);
        gaps.push_back(0);
      }
      codes.back() = static_cast<uint8_t>(codes.back() | code << shift);
      gaps.back() = static_cast<uint8_t>(gaps.back() | gap << shift);
      ends.push_back((ends.empty() ? 0 : ends.back()) + gap + 1);
      ++view.nnz;
    };
    std::vector<int32_t> col_ptr(static_cast<size_t>(view.cols) + 1), entry_row(static_cast<size_t>(csr.view.nnz));
    std::vector<float> values(entry_row.size());
    transpose_csr<float>(csr.view, col_ptr.data(), entry_row.data(), values.data());
    for (int64_t k = 0; k < view.cols; ++k) {
      for (int32_t i = col_ptr[static_cast<size_t>(k)]; i < col_ptr[static_cast<size_t>(k) + 1]; ++i) {
        const int64_t position = k * view.rows + entry_row[static_cast<size_t>(i)];
        const auto zeros = [&] { return position - (ends.empty() ? 0 : ends.back()); };
        while (zeros() >= kStep) add(kStep - 1, 0);
        add(zeros(), 1 + i % kValues);
      }
    }
    for (int64_t segment = 0; segment < view.num_segments(); ++segment) {
      const int64_t start = segment / rows * view.rows + segment % rows * view.block_rows;
      const auto entry = std::upper_bound(ends.begin(), ends.end(), start) - ends.begin();
      segment_ptr.push_back(static_cast<int32_t>(entry));
      const int64_t before = entry == 0 ? 0 : ends[static_cast<size_t>(entry) - 1];
      segment_zeros.push_back(static_cast<uint8_t>(std::min(start - before, kStep - 1)));
    }
    segment_ptr.push_back(static_cast<int32_t>(view.nnz));
    codes.resize(codes.size() + kCodebookSlack);
    gaps.resize(gaps.size() + kCodebookSlack);
    view.codebook = codebook.data();
    view.codes = codes.data();
    view.gaps = gaps.data();
    view.segment_ptr = segment_ptr.data();
    view.segment_zeros = segment_zeros.data();
  }
  Packed(const Packed&) = delete;
};

// Int8 weights[N, K] in one segment, for the lanes and the table of `shape`; flops: of a row of activations.
template <class View>
struct PackedInt8;

template <>
struct PackedInt8<Int8View> {
  Int8View view;
  double flops;
  std::vector<int8_t> values;

  PackedInt8(Int8View shape, double) : view(shape), flops(2.0 * double(shape.rows * shape.cols)) {
    values.assign(static_cast<size_t>(view.num_blocks() * view.block_bytes()), int8_t(3));
    view.values = values.data();
  }
};

template <>
struct PackedInt8<BitmapInt8View> {
  BitmapInt8View view;
  double flops;
  std::vector<uint8_t> masks;
  std::vector<int32_t> value_ptr{0};
  std::vector<int8_t> values;

  PackedInt8(BitmapInt8View shape, double sparsity) : view(shape) {
    std::mt19937 random(2);
    std::bernoulli_distribution keep(1.0 - sparsity);
    int32_t nnz = 0;
    for (int64_t block = 0; block < view.num_blocks(); ++block) {
      for (int64_t byte = 0; byte < view.block_bytes() / 8; ++byte) {
        int mask = 0;
        for (int bit = 0; bit < 8; ++bit) mask |= keep(random) << bit;
        masks.push_back(static_cast<uint8_t>(mask));
        nnz += __builtin_popcount(static_cast<unsigned>(mask));
      }
      value_ptr.push_back(nnz);
    }
    values.assign(static_cast<size_t>(nnz + kReadBeyond), int8_t(3));
    flops = 2.0 * double(nnz);
    view.nnz = nnz;
    view.masks = masks.data();
    view.value_ptr = value_ptr.data();
    view.values = values.data();
  }
  PackedInt8(const PackedInt8&) = delete;
};

template <>
struct PackedInt8<LookupView> {
  LookupView view;
  double flops;
  std::vector<int32_t> entry_ptr, step_ptr;
  std::vector<uint16_t> entry_group;
  std::vector<uint8_t> entry_steps, slots;

  PackedInt8(LookupView shape, double sparsity) : view(shape) {
    const Csr<int8_t> csr(shape.rows, shape.cols, sparsity);
    const Range blocks{0, view.num_blocks()};
    std::vector<int8_t> dense(static_cast<size_t>(shape.rows * shape.cols));
    unpack_csr(csr.view, {0, shape.rows}, dense.data());
    entry_ptr.resize(static_cast<size_t>(blocks.end) + 1);
    step_ptr.resize(entry_ptr.size());
    count_lookup(dense.data(), shape, blocks, entry_ptr.data(), step_ptr.data());
    view.num_entries = running_sum(entry_ptr.data(), blocks.end);
    view.num_steps = running_sum(step_ptr.data(), blocks.end);
    entry_group.resize(static_cast<size_t>(view.num_entries));
    entry_steps.resize(entry_group.size());
    slots.resize(static_cast<size_t>(view.num_steps * 2 * view.quad_bytes()));
    fill_lookup(dense.data(), shape, blocks,
                {entry_ptr.data(), step_ptr.data(), entry_group.data(), entry_steps.data(), slots.data()});
    flops = csr.flops(1);
    view.entry_ptr = entry_ptr.data();
    view.step_ptr = step_ptr.data();
    view.entry_group = entry_group.data();
    view.entry_steps = entry_steps.data();
    view.slots = slots.data();
  }
  PackedInt8(const PackedInt8&) = delete;
};

template <>
struct PackedInt8<LookupInt4View> {
  LookupInt4View view;
  double flops;
  std::vector<int32_t> entry_ptr, step_ptr;
  std::vector<uint8_t> entry_table, entry_steps, slots;
  std::vector<float> group_scale;
  std::vector<int16_t> group_sum;

  PackedInt8(LookupInt4View shape, double sparsity) : view(shape) {
    const Csr<int8_t> csr(shape.rows, shape.cols, sparsity);
    const Range blocks{0, view.num_blocks()};
    std::vector<int8_t> dense(static_cast<size_t>(shape.rows * shape.cols));
    unpack_csr(csr.view, {0, shape.rows}, dense.data());
    for (int8_t& value : dense) value = static_cast<int8_t>(value == 0 ? 0 : value > 0 ? 3 : -3);
    const int64_t groups = blocks.end * view.groups();
    entry_ptr.resize(static_cast<size_t>(groups) + 1);
    step_ptr.resize(static_cast<size_t>(blocks.end) + 1);
    count_lookup_int4(dense.data(), shape, blocks, entry_ptr.data(), step_ptr.data());
    view.num_entries = running_sum(entry_ptr.data(), groups);
    view.num_steps = running_sum(step_ptr.data(), blocks.end);
    entry_table.resize(static_cast<size_t>(view.num_entries));
    entry_steps.resize(entry_table.size());
    slots.resize(static_cast<size_t>(view.num_steps * view.quad_bytes()));
    fill_lookup_int4(dense.data(), shape, blocks,
                     {entry_ptr.data(), step_ptr.data(), entry_table.data(), entry_steps.data(), slots.data()});
    group_scale.assign(static_cast<size_t>(groups * view.lanes), 0.01f);
    group_sum.assign(group_scale.size(), int16_t(1));
    flops = csr.flops(1);
    view.entry_ptr = entry_ptr.data();
    view.step_ptr = step_ptr.data();
    view.entry_table = entry_table.data();
    view.entry_steps = entry_steps.data();
    view.slots = slots.data();
    view.group_scale = group_scale.data();
    view.group_sum = group_sum.data();
  }
  PackedInt8(const PackedInt8&) = delete;
};

// Bytes of activations as the bindings lay them out.
struct QuantizedRows {
  int64_t ld;
  std::vector<uint8_t> bytes;
  std::vector<float> scale;

  QuantizedRows(int64_t M, int64_t K)
      : ld((K + 63) / 64 * 64), bytes(static_cast<size_t>(M * ld + kReadBeyond)), scale(static_cast<size_t>(M), 0.01f) {
    std::mt19937 random(3);
    std::uniform_int_distribution<int> value(0, 255);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(value(random));
  }
};

}  // namespace sparsecore
