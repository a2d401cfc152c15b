// A CSR weight in the form that a kernel takes, in guarded buffers: one specialization per view.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <variant>
#include <vector>

#include "csr.h"
#include "guarded.h"
#include "harness.h"
#include "numbers.h"
#include "sparsecore/codebook.h"
#include "sparsecore/jit.h"
#include "sparsecore/pack.h"
#include "sparsecore/views.h"

namespace sparsecore::test {

// What formats are free to choose; each reads its own.
struct Packing {
  int64_t block_rows = 8, panel_cols = 16;  // of panels
  int64_t csr_block_rows = 1;               // of block CSR
  Dtype value_dtype = Dtype::kFloat32;      // of bitmaps; the values must be numbers of it
  int64_t num_values = 0;                   // of codebooks; the weight must have no more, and no zero; 0: any
  int64_t gap_bits = 4;                     // of codebooks, whose blocks have block_rows too
  int64_t planes = 0;                       // of bit planes; the values must be those of with_signs()
  int64_t kernel_h = 0, kernel_w = 0;       // of generated code
};

inline std::ostream& operator<<(std::ostream& out, const Packing& packing) {
  return out << packing.block_rows << "x" << packing.panel_cols << "/" << packing.csr_block_rows << " "
             << dtype_name(packing.value_dtype) << " " << packing.num_values << " values, gaps of " << packing.gap_bits
             << ", planes " << packing.planes;
}

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
class PackedWeight<BlockCsrView<T>> {
 public:
  PackedWeight(const Csr<T>& csr, Packing packing, Guard guard)
      : PackedWeight(csr, packing.csr_block_rows, counted(csr, packing.csr_block_rows), guard) {}

  BlockCsrView<T> view() const {
    return {rows_, cols_, col_idx.size(), block_rows_, row_ptr.data(), col_idx.data(), values.data()};
  }
  int64_t num_rows() const { return view().num_blocks(); }

 private:
  static std::vector<int32_t> counted(const Csr<T>& csr, int64_t block_rows) {
    const int64_t num_blocks = csr.rows / block_rows;
    std::vector<int32_t> block_ptr(static_cast<size_t>(num_blocks) + 1);
    count_block_csr(csr.view(), block_rows, {0, num_blocks}, block_ptr.data());
    running_sum(block_ptr.data(), num_blocks);
    return block_ptr;
  }

  PackedWeight(const Csr<T>& csr, int64_t block_rows, const std::vector<int32_t>& block_ptr, Guard guard)
      : row_ptr(block_ptr, guard),
        col_idx(block_ptr.back(), guard),
        values(block_ptr.back() * block_rows, guard),
        rows_(csr.rows),
        cols_(csr.cols),
        block_rows_(block_rows) {
    const GuardedCsr<T> source(csr, guard);
    fill_block_csr(source.view(), block_rows, {0, csr.rows / block_rows}, row_ptr.data(), col_idx.data(),
                   values.data());
  }

 public:
  Buffer<int32_t> row_ptr, col_idx;
  Buffer<T> values;

 private:
  int64_t rows_, cols_, block_rows_;
};

// The same weight with the zeros stored that block CSR stores: a column is there for all rows of a block or for none.
template <class T>
Csr<T> with_whole_blocks(const Csr<T>& csr, int64_t block_rows) {
  Csr<T> result{csr.rows, csr.cols, {0}, {}, {}};
  for (int64_t n = 0; n < csr.rows; ++n) {
    std::map<int32_t, T> row;
    const int64_t first = n / block_rows * block_rows;
    for (int64_t other = first; other < first + block_rows; ++other) {
      for_each_entry(csr, other, [&](int32_t k, T) { row.try_emplace(k, T{}); });
    }
    for_each_entry(csr, n, [&](int32_t k, T value) { row[k] = value; });
    for (const auto& [k, value] : row) {
      result.col_idx.push_back(k);
      result.values.push_back(value);
    }
    result.row_ptr.push_back(static_cast<int32_t>(result.values.size()));
  }
  return result;
}

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

// The same entries with values as bits of a 16-bit dtype.
inline Csr<uint16_t> encoded(const Csr<float>& csr, Dtype dtype) {
  Csr<uint16_t> result{csr.rows, csr.cols, csr.row_ptr, csr.col_idx, {}};
  for (const float value : csr.values) result.values.push_back(encode(dtype, double(value)));
  return result;
}

template <>
class PackedWeight<JitView> {
 public:
  PackedWeight(const Csr<float>& csr, Packing packing, Guard guard)
      : program_(JitProgram::generate(GuardedCsr<float>(csr, guard).view(), packing.kernel_h, packing.kernel_w)) {
    if (program_ == nullptr) throw std::runtime_error("expected a program");
  }
  JitView view() const { return program_->view(); }
  int64_t num_rows() const { return view().num_blocks(); }

 private:
  std::shared_ptr<const JitProgram> program_;
};

template <>
class PackedWeight<BitmapView> {
 public:
  PackedWeight(const Csr<float>& csr, Packing packing, Guard guard)
      : PackedWeight(csr, packing.value_dtype, guard, nullptr) {
    if (dtype_ == Dtype::kFloat32) {
      fill(csr, guard, values);
    } else {
      fill(encoded(csr, dtype_), guard, narrow_values);
    }
  }
  PackedWeight(const Csr<uint16_t>& csr, Dtype dtype, Guard guard) : PackedWeight(csr, dtype, guard, nullptr) {
    fill(csr, guard, narrow_values);
  }

  BitmapView view() const {
    BitmapView view{.rows = rows_, .cols = cols_, .nnz = nnz_};
    view.block_ptr = block_ptr.data();
    view.masks = masks.data();
    view.dtype = dtype_;
    view.values = dtype_ == Dtype::kFloat32 ? static_cast<const void*>(values.data()) : narrow_values.data();
    return view;
  }
  int64_t num_rows() const { return view().num_blocks(); }

 private:
  template <class T>
  PackedWeight(const Csr<T>& csr, Dtype dtype, Guard guard, std::nullptr_t)
      : block_ptr((csr.rows + kBitmapBlockRows - 1) / kBitmapBlockRows + 1, guard),
        masks((block_ptr.size() - 1) * csr.cols, guard),
        values(dtype == Dtype::kFloat32 ? csr.nnz() + kBitmapSlack : 0, guard),
        narrow_values(dtype == Dtype::kFloat32 ? 0 : csr.nnz() + kBitmapSlack, guard),
        rows_(csr.rows),
        cols_(csr.cols),
        nnz_(csr.nnz()),
        dtype_(dtype) {}

  template <class T>
  void fill(const Csr<T>& csr, Guard guard, Buffer<T>& packed) {
    const GuardedCsr<T> source(csr, guard);
    block_ptr[0] = 0;
    fill_bitmap<T>(source.view(), {0, block_ptr.size() - 1}, {block_ptr.data(), masks.data(), packed.data()});
    std::fill(packed.end() - kBitmapSlack, packed.end(), T(0));
  }

 public:  // so that tests can damage them
  Buffer<int32_t> block_ptr;
  Buffer<uint16_t> masks;
  Buffer<float> values;
  Buffer<uint16_t> narrow_values;

 private:
  int64_t rows_, cols_, nnz_;
  Dtype dtype_;
};

// The same entries with one magnitude per row, or two, of which negative ones have the second.
inline Csr<float> with_signs(Csr<float> csr, int64_t planes, Random& random) {
  for (int64_t n = 0; n < csr.rows; ++n) {
    const float positive = std::fabs(random.number()) + 0.1f;
    const float negative = planes == 1 ? positive : std::fabs(random.number()) + 0.1f;
    for (auto i = static_cast<size_t>(csr.row_ptr[size_t(n)]); i < static_cast<size_t>(csr.row_ptr[size_t(n) + 1]);
         ++i) {
      csr.values[i] = csr.values[i] < 0.0f ? -negative : positive;
    }
  }
  return csr;
}

// Bits and scales of positions past N and K are set, so that a kernel that takes them shows it.
template <>
class PackedWeight<PlanesView> {
 public:
  PackedWeight(const Csr<float>& csr, Packing packing, Guard guard)
      : sizes_{.rows = csr.rows, .cols = csr.cols, .planes = packing.planes},
        words_(sizes_.num_blocks() * sizes_.num_words() * sizes_.planes * kPlaneBlockRows, guard),
        scale_(sizes_.planes * sizes_.num_blocks() * kPlaneBlockRows, guard) {
    const int64_t padded_rows = sizes_.num_blocks() * kPlaneBlockRows;
    std::fill(words_.begin(), words_.end(), 0u);
    std::fill(scale_.begin(), scale_.end(), 0.0f);
    for (int64_t n = 0; n < padded_rows; ++n) {
      for (int64_t p = 0; p < sizes_.planes; ++p) {
        const int64_t first = n < csr.rows ? csr.cols : 0;
        for (int64_t k = first; k < sizes_.num_words() * kPlaneWordBits; ++k) set(p, n, k);
        if (n >= csr.rows) scale_[p * padded_rows + n] = std::nanf("");
      }
      if (n >= csr.rows) continue;
      for_each_entry(csr, n, [&](int64_t k, float value) {
        const bool is_negative = value < 0.0f;
        const int64_t plane = sizes_.planes == 2 && is_negative ? 1 : 0;
        scale_[plane * padded_rows + n] = sizes_.planes == 2 ? value : std::fabs(value);
        if (sizes_.planes == 2 || is_negative) set(plane, n, k);
      });
    }
  }

  PlanesView view() const {
    PlanesView view = sizes_;
    view.words = words_.data();
    view.scale = scale_.data();
    return view;
  }
  int64_t num_rows() const { return sizes_.num_blocks(); }

 private:
  void set(int64_t plane, int64_t n, int64_t k) {
    const int64_t word = (n / kPlaneBlockRows * sizes_.num_words() + k / kPlaneWordBits) * sizes_.planes + plane;
    words_[word * kPlaneBlockRows + n % kPlaneBlockRows] |= 1u << (k % kPlaneWordBits);
  }

  PlanesView sizes_;
  Buffer<uint32_t> words_;
  Buffer<float> scale_;
};

// One bit after another, by hand.
inline std::vector<uint8_t> packed_fields(const std::vector<uint8_t>& numbers, int64_t bits, int64_t slack) {
  std::vector<uint8_t> bytes((numbers.size() * static_cast<size_t>(bits) + 7) / 8 + static_cast<size_t>(slack));
  size_t place = 0;
  for (const uint8_t number : numbers) {
    for (int64_t bit = 0; bit < bits; ++bit, ++place) {
      bytes[place / 8] = static_cast<uint8_t>(bytes[place / 8] | (number >> bit & 1) << (place % 8));
    }
  }
  return bytes;
}

template <>
class PackedWeight<CodebookView> {
 public:
  PackedWeight(const Csr<float>& csr, Packing packing, Guard guard)
      : PackedWeight(Entries(csr, packing), packing, guard) {}

  CodebookView view() const {
    CodebookView view = sizes_;
    view.codebook = codebook.data();
    view.codes = codes.data();
    view.gaps = gaps.data();
    view.segment_ptr = segment_ptr.data();
    view.segment_zeros = segment_zeros.data();
    return view;
  }
  int64_t num_rows() const { return sizes_.num_blocks(); }

 private:
  // Entry by entry: the codes, the gaps with their fillers, and where segments begin.
  struct Entries {
    Entries(const Csr<float>& csr, Packing packing) {
      sizes.rows = csr.rows;
      sizes.cols = csr.cols;
      sizes.block_rows = packing.block_rows;
      sizes.gap_bits = packing.gap_bits;
      std::map<int64_t, float> places;
      for (int64_t n = 0; n < csr.rows; ++n) {
        for_each_entry(csr, n, [&](int64_t k, float value) { places[k * csr.rows + n] = value; });
      }
      const int64_t step = int64_t(1) << packing.gap_bits;
      codebook = {0.0f};  // of fillers
      std::map<float, uint8_t> code_of;
      int64_t next = 0;
      for (const auto& [place, value] : places) {
        for (; place - next >= step; next += step) add(next, step - 1, 0);
        const auto [it, is_new] = code_of.try_emplace(value, static_cast<uint8_t>(codebook.size()));
        if (is_new) codebook.push_back(value);
        add(next, place - next, it->second);
        next = place + 1;
      }
      while (size_t(1) << sizes.bits < codebook.size()) ++sizes.bits;
      codebook.resize(size_t(1) << sizes.bits);
      sizes.nnz = static_cast<int64_t>(codes.size());
      for (int64_t k = 0; k < csr.cols; ++k) {
        for (int64_t n = 0; n < csr.rows; n += packing.block_rows) {
          const int64_t start = k * csr.rows + n;
          const auto entry = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), start) - ends.begin());
          segment_ptr.push_back(static_cast<int32_t>(entry));
          const int64_t before = entry == 0 ? 0 : ends[entry - 1];
          segment_zeros.push_back(static_cast<uint8_t>(std::min<int64_t>(start - before, 255)));
        }
      }
      segment_ptr.push_back(static_cast<int32_t>(codes.size()));
    }

    void add(int64_t next, int64_t gap, uint8_t code) {
      codes.push_back(code);
      gaps.push_back(static_cast<uint8_t>(gap));
      ends.push_back(next + gap + 1);
    }

    CodebookView sizes;
    std::vector<float> codebook;
    std::vector<uint8_t> codes, gaps, segment_zeros;
    std::vector<int64_t> ends;  // position behind each entry
    std::vector<int32_t> segment_ptr;
  };

  PackedWeight(const Entries& entries, Packing packing, Guard guard)
      : codebook(entries.codebook, guard),
        codes(packed_fields(entries.codes, entries.sizes.bits, kCodebookSlack), guard),
        gaps(packed_fields(entries.gaps, packing.gap_bits, kCodebookSlack), guard),
        segment_ptr(entries.segment_ptr, guard),
        segment_zeros(entries.segment_zeros, guard),
        sizes_(entries.sizes) {}

 public:  // so that tests can damage them
  Buffer<float> codebook;
  Buffer<uint8_t> codes, gaps;
  Buffer<int32_t> segment_ptr;
  Buffer<uint8_t> segment_zeros;

 private:
  CodebookView sizes_;
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
