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

// Sums of as many rows and one vector of columns: an activation is loaded once for all rows of the block that have its
// column (at 90% zeros 2.7 of 28), and the value comes with the multiply-add. The other registers hold activations.
constexpr int kSums = 28, kRegisters = 32;
static_assert(JitView::kLanes * int64_t(sizeof(float)) == jit::kVectorBytes);

// Activations of a panel: half of a first-level cache of 32 KB.
constexpr int64_t kPanelBytes = 16 * 1024;

// Code of one panel of a group: decoded instructions of about as much stay in the processor.
constexpr int64_t kGroupBytes = 40 * 1024;
constexpr int64_t kMaxGroupBlocks = 8;
constexpr int64_t kEntryBytes = 9;  // of code, about

// Keeps a pointer so close to the operands that are used one after the other that their offsets take one byte.
class Cursor {
 public:
  Cursor(Assembler& assembler, Pointer pointer, int32_t operand_bytes)
      : assembler_(assembler), pointer_(pointer), operand_bytes_(operand_bytes) {}

  // Operand i from where the pointer was at first; i never falls.
  Address at(int64_t i) {
    if (i - place_ > 127) {
      assembler_.advance(pointer_, static_cast<int32_t>(i + 128 - place_) * operand_bytes_);
      place_ = i + 128;
    }
    return {pointer_, static_cast<int32_t>(i - place_) * operand_bytes_};
  }

 private:
  Assembler& assembler_;
  Pointer pointer_;
  int32_t operand_bytes_;
  int64_t place_ = 0;  // operands that the pointer was moved by
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
  explicit Program(const CsrView<float>& weight) {
    view_.rows = weight.rows, view_.cols = weight.cols, view_.nnz = weight.nnz;
    const int64_t blocks = (weight.rows + kSums - 1) / kSums;
    view_.block_rows = blocks == 0 ? 1 : (weight.rows + blocks - 1) / blocks;  // 64 rows as 22 + 22 + 20
    const int64_t panels = std::max<int64_t>((weight.cols * jit::kVectorBytes + kPanelBytes - 1) / kPanelBytes, 1);
    view_.panel_cols = std::max<int64_t>((weight.cols + panels - 1) / panels, 1);
    const int64_t segment_bytes = kEntryBytes * weight.nnz / std::max<int64_t>(view_.num_segments(), 1);
    view_.group_blocks = std::clamp<int64_t>(kGroupBytes / std::max<int64_t>(segment_bytes, 1), 1, kMaxGroupBlocks);
    // 4 blocks of 28 rows are whole vectors of y[M, N]: up to 6% faster than 6 blocks there, 1 to 3% for columns.
    if (view_.group_blocks > 4) view_.group_blocks -= view_.group_blocks % 4;
  }

  const JitView& view() const override { return view_; }
  int64_t nbytes() const override {
    return code_ptr_.back() + int64_t(values_.size() * sizeof(float) + code_ptr_.size() * sizeof(int64_t) +
                                      (entry_ptr_.size() + block_ptr_.size()) * sizeof(int32_t));
  }

  bool generate(const CsrView<float>& weight) {
    Assembler assembler;
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
    const auto sums = [](int row) {
      return Address{Pointer::kSums, row * int32_t(JitView::kSumsStride * sizeof(float))};
    };
    for (int row = 0; row < rows; ++row) {
      if (is_first) {
        assembler.zero(row);
      } else {
        assembler.load(row, sums(row));
      }
    }
    Cursor values(assembler, Pointer::kValues, sizeof(float));
    Cursor x(assembler, Pointer::kX, jit::kVectorBytes);
    int64_t used = 0;
    int loaded = kSums;
    for (int64_t k = panel.begin; k < panel.end; ++k) {
      const Entry* entry = columns.entries.data() + columns.begin[static_cast<size_t>(k)];
      const Entry* end = columns.entries.data() + columns.begin[static_cast<size_t>(k) + 1];
      if (entry == end) continue;
      assembler.load(loaded, x.at(k - panel.begin));
      for (; entry < end; ++entry) {
        assembler.fma_broadcast(entry->row, loaded, values.at(used++));
        values_.push_back(entry->value);
      }
      loaded = loaded + 1 < kRegisters ? loaded + 1 : kSums;
    }
    for (int row = 0; row < rows; ++row) assembler.store(sums(row), row);
    assembler.ret();
  }

  JitView view_;
  std::unique_ptr<jit::Executable> executable_;
  std::vector<int64_t> code_ptr_;
  std::vector<int32_t> entry_ptr_, block_ptr_;
  std::vector<float> values_;
};

bool has_generator() {
#if defined(__x86_64__) && defined(__unix__)
  return isa_enabled(Isa::kAvx512);
#else
  return false;
#endif
}

}  // namespace

std::shared_ptr<const JitProgram> JitProgram::generate(const CsrView<float>& weight) {
  if (!has_generator()) return nullptr;
  auto program = std::make_shared<Program>(weight);
  return program->generate(weight) ? program : nullptr;
}

}  // namespace sparsecore
