// From a CSR weight to its program: see JitView in sparsecore/views.h.
#include <algorithm>
#include <vector>

#include "jit/assembler.h"
#include "jit/executable.h"
#include "sparsecore/jit.h"

namespace sparsecore {
namespace {

using jit::Address;
using jit::Assembler;
using jit::Pointer;

// How registers are used: a sum for each row of a block and vector of columns; the rest holds activations and values.
struct Registers {
  bool is_avx512;
  int lanes;    // of a vector
  int vectors;  // of a segment's columns
  int rows;     // of a block, at most
  int all;

  int num_sums() const { return rows * vectors; }
};

// One vector of columns and many rows: an activation is loaded once for all rows of the block that have its column
// (at 90% zeros 2.7 of 28), and the value comes with the multiply-add.
constexpr Registers kAvx512Registers{true, 16, 1, 28, 32};
// A value has to be loaded apart, so that it should serve several vectors.
constexpr Registers kAvx2Registers{false, 8, 2, 6, 16};

// Activations of a panel: half of a first-level cache of 32 KB.
constexpr int64_t kPanelBytes = 16 * 1024;

// Code of one panel of a group: decoded instructions of about as much stay in the processor.
constexpr int64_t kGroupBytes = 40 * 1024;
constexpr int64_t kMaxGroupBlocks = 8;
constexpr int64_t kEntryBytes = 9;  // of code, about

static_assert(kAvx512Registers.lanes * kAvx512Registers.vectors == JitView::kLanes);
static_assert(kAvx2Registers.lanes * kAvx2Registers.vectors == JitView::kLanes);

// Keeps a pointer so close to the numbers that are used one after the other that their offsets take one byte.
class Cursor {
 public:
  Cursor(Assembler& assembler, Pointer pointer, int32_t unit) : assembler_(assembler), pointer_(pointer), unit_(unit) {}

  Address at(int64_t offset) {
    if (offset - place_ > 127 * int64_t(unit_)) {
      const int64_t place = offset + 128 * int64_t(unit_);
      assembler_.advance(pointer_, static_cast<int32_t>(place - place_));
      place_ = place;
    }
    return {pointer_, static_cast<int32_t>(offset - place_)};
  }

 private:
  Assembler& assembler_;
  Pointer pointer_;
  int32_t unit_;
  int64_t place_ = 0;  // bytes that the pointer was moved by
};

struct Entry {
  int row;  // in its block
  float value;
};

// The entries of one block by column, of which column k has begin[k] .. begin[k + 1].
struct BlockColumns {
  std::vector<int32_t> begin;
  std::vector<Entry> entries;

  BlockColumns(const CsrView<float>& weight, Range rows) : begin(static_cast<size_t>(weight.cols) + 2, 0) {
    const int32_t first = weight.row_ptr[rows.begin], last = weight.row_ptr[rows.end];
    entries.resize(static_cast<size_t>(last - first));
    for (int32_t i = first; i < last; ++i) ++begin[static_cast<size_t>(weight.col_idx[i]) + 2];
    for (size_t k = 2; k < begin.size(); ++k) begin[k] += begin[k - 1];
    for (int64_t n = rows.begin; n < rows.end; ++n) {
      for (int32_t i = weight.row_ptr[n]; i < weight.row_ptr[n + 1]; ++i) {
        const auto place = static_cast<size_t>(begin[static_cast<size_t>(weight.col_idx[i]) + 1]++);
        entries[place] = {static_cast<int>(n - rows.begin), weight.values[i]};
      }
    }
  }
};

class Program final : public JitProgram {
 public:
  Program(const CsrView<float>& weight, const Registers& registers) : registers_(registers) {
    view_.rows = weight.rows, view_.cols = weight.cols, view_.nnz = weight.nnz;
    const int64_t blocks = (weight.rows + registers.rows - 1) / registers.rows;
    view_.block_rows = blocks == 0 ? 1 : (weight.rows + blocks - 1) / blocks;  // 64 rows as 22 + 22 + 20
    constexpr int64_t kColumnBytes = JitView::kLanes * int64_t(sizeof(float));
    const int64_t panels = std::max<int64_t>((weight.cols * kColumnBytes + kPanelBytes - 1) / kPanelBytes, 1);
    view_.panel_cols = std::max<int64_t>((weight.cols + panels - 1) / panels, 1);
    const int64_t segment_bytes = kEntryBytes * weight.nnz / std::max<int64_t>(view_.num_segments(), 1);
    view_.group_blocks = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(segment_bytes, 1), 1, kMaxGroupBlocks);
  }

  const JitView& view() const override { return view_; }
  int64_t nbytes() const override {
    return code_ptr_.back() + int64_t(values_.size() * sizeof(float) + code_ptr_.size() * sizeof(int64_t) +
                                      (entry_ptr_.size() + block_ptr_.size()) * sizeof(int32_t));
  }

  bool generate(const CsrView<float>& weight) {
    Assembler assembler(registers_.is_avx512);
    values_.reserve(static_cast<size_t>(weight.nnz));
    for (int64_t block = 0; block <= view_.num_blocks(); ++block) {
      block_ptr_.push_back(weight.row_ptr[std::min(block * view_.block_rows, weight.rows)]);
    }
    for (int64_t first = 0; first < view_.num_blocks(); first += view_.group_blocks) {
      const Range group = view_.group_of(first);
      std::vector<BlockColumns> blocks;
      for (int64_t block = group.begin; block < group.end; ++block)
        blocks.emplace_back(weight, view_.rows_of({block, block + 1}));
      for (int64_t panel = 0; panel < view_.num_panels(); ++panel) {
        const int64_t begin = panel * view_.panel_cols;
        const Range columns{begin, std::min(begin + view_.panel_cols, weight.cols)};
        for (int64_t block = group.begin; block < group.end; ++block) {
          code_ptr_.push_back(assembler.size());
          entry_ptr_.push_back(num_values());
          write_segment(assembler, blocks[static_cast<size_t>(block - first)], columns,
                        static_cast<int>(view_.rows_of({block, block + 1}).size()), panel == 0);
        }
      }
    }
    code_ptr_.push_back(assembler.size());
    entry_ptr_.push_back(num_values());
    if (view_.num_segments() > 0) {
      executable_ = jit::Executable::copy_of(assembler.bytes());
      if (executable_ == nullptr) return false;
      view_.code = executable_->code();
    }
    view_.code_ptr = code_ptr_.data(), view_.entry_ptr = entry_ptr_.data(), view_.block_ptr = block_ptr_.data();
    view_.values = values_.data();
    return true;
  }

 private:
  int32_t num_values() const { return static_cast<int32_t>(values_.size()); }

  void write_segment(Assembler& assembler, const BlockColumns& columns, Range panel, int rows, bool is_first) {
    const int V = registers_.vectors, num_sums = rows * V, vector_bytes = registers_.lanes * int(sizeof(float));
    const auto sums = [&](int i) {
      return Address{Pointer::kSums, i / V * int32_t(JitView::kSumsStride * sizeof(float)) + i % V * vector_bytes};
    };
    for (int i = 0; i < num_sums; ++i) {
      if (is_first) {
        assembler.zero(i);
      } else {
        assembler.load(i, sums(i));
      }
    }
    Cursor values(assembler, Pointer::kValues, assembler.short_unit(sizeof(float)));
    Cursor x(assembler, Pointer::kX, assembler.short_unit(vector_bytes));
    const int64_t first_value = num_values();
    int next_register = 0;
    for (int64_t k = panel.begin; k < panel.end; ++k) {
      const Entry* begin = columns.entries.data() + columns.begin[static_cast<size_t>(k)];
      const Entry* end = columns.entries.data() + columns.begin[static_cast<size_t>(k) + 1];
      if (begin == end) continue;
      const int64_t x_offset = (k - panel.begin) * V * vector_bytes;
      const auto next_value = [&](float value) {
        values_.push_back(value);
        return values.at((num_values() - 1 - first_value) * int64_t(sizeof(float)));
      };
      if (registers_.is_avx512) {
        const int free = registers_.num_sums(), loaded = free + next_register++ % (registers_.all - free);
        assembler.load(loaded, x.at(x_offset));
        for (const Entry* e = begin; e < end; ++e) assembler.fma_broadcast(e->row, loaded, next_value(e->value));
        continue;
      }
      // One entry takes its activations from memory; several share loaded ones.
      const int shared = registers_.num_sums(), free = shared + V;
      if (end - begin > 1) {
        for (int v = 0; v < V; ++v) assembler.load(shared + v, {Pointer::kX, int32_t(x_offset) + v * vector_bytes});
      }
      for (const Entry* e = begin; e < end; ++e) {
        const int value = free + next_register++ % (registers_.all - free);
        assembler.broadcast(value, next_value(e->value));
        for (int v = 0; v < V; ++v) {
          const int sum = e->row * V + v;
          if (end - begin > 1) {
            assembler.fma(sum, value, shared + v);
          } else {
            assembler.fma(sum, value, {Pointer::kX, int32_t(x_offset) + v * vector_bytes});
          }
        }
      }
    }
    for (int i = 0; i < num_sums; ++i) assembler.store(sums(i), i);
    assembler.ret();
  }

  Registers registers_;
  JitView view_;
  std::unique_ptr<jit::Executable> executable_;
  std::vector<int64_t> code_ptr_;
  std::vector<int32_t> entry_ptr_, block_ptr_;
  std::vector<float> values_;
};

const Registers* registers_in_use() {
#if defined(__x86_64__) && defined(__unix__)
  if (isa_enabled(Isa::kAvx512)) return &kAvx512Registers;
  if (isa_enabled(Isa::kAvx2)) return &kAvx2Registers;
#endif
  return nullptr;
}

}  // namespace

std::shared_ptr<const JitProgram> JitProgram::generate(const CsrView<float>& weight) {
  const Registers* registers = registers_in_use();
  if (registers == nullptr) return nullptr;
  auto program = std::make_shared<Program>(weight, *registers);
  return program->generate(weight) ? program : nullptr;
}

}  // namespace sparsecore
