// From a CSR weight to its program: see JitView in sparsecore/views.h.
#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#include "jit/assembler.h"
#include "jit/executable.h"
#include "sparsecore/jit.h"

namespace sparsecore {
namespace {

using jit::Address;
using jit::Assembler;
using jit::Register;

constexpr Register kValues = jit::kArguments[0], kX = jit::kArguments[1], kSumsOut = jit::kArguments[2];
constexpr Register kOutputs = jit::kArguments[3];

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
  Cursor(Assembler& assembler, Register pointer, int32_t operand_bytes)
      : assembler_(assembler), pointer_(pointer), operand_bytes_(operand_bytes) {}

  // Operand i from where the pointer was at first; i never falls.
  Address at(int64_t i) {
    if (i - place_ > 127) {
      assembler_.add(pointer_, static_cast<int32_t>(i + 128 - place_) * operand_bytes_);
      place_ = i + 128;
    }
    return {pointer_, static_cast<int32_t>(i - place_) * operand_bytes_};
  }

 private:
  Assembler& assembler_;
  Register pointer_;
  int32_t operand_bytes_;
  int64_t place_ = 0;  // operands that the pointer was moved by
};

// Where the activations of a product's columns lie: one vector after the other.
class PanelColumns {
 public:
  explicit PanelColumns(Assembler& assembler) : x_(assembler, kX, jit::kVectorBytes) {}
  Address at(int64_t k) { return x_.at(k); }
  void leave() {}

 private:
  Cursor x_;
};

// The same for a convolution: what JitTaps holds, in registers as far as there are enough. Rows move on with channels.
class TapColumns {
 public:
  TapColumns(Assembler& assembler, int64_t kernel_h, int64_t kernel_w)
      : assembler_(assembler), kernel_w_(kernel_w), taps_(kernel_h * kernel_w) {
    std::vector<Register> free(std::begin(kFree), std::end(kFree));
    const auto take = [&](size_t offset) {
      const Register reg = free.back();
      free.pop_back();
      if (jit::is_callee_saved(reg)) {
        assembler_.push(reg);
        saved_.push_back(reg);
      }
      assembler_.load(reg, {kX, static_cast<int32_t>(offset)});
      return reg;
    };
    channel_bytes_ = take(offsetof(JitTaps, channel));
    for (int64_t kh = 0; kh < kernel_h; ++kh) rows_.push_back(take(offsetof(JitTaps, rows) + size_t(kh) * 8));
    for (int64_t kw = 0; kw < kernel_w && !free.empty(); ++kw) columns_.push_back(take(column_offset(kw)));
  }

  Address at(int64_t k) {
    for (; channel_ < k / taps_; ++channel_) {
      for (const Register row : rows_) assembler_.add(row, channel_bytes_);
    }
    const int64_t kh = k % taps_ / kernel_w_, kw = k % kernel_w_;
    Register column = kSpare;
    if (kw < int64_t(columns_.size())) {
      column = columns_[size_t(kw)];
    } else {
      assembler_.load(kSpare, {kX, static_cast<int32_t>(column_offset(kw))});
    }
    return {rows_[size_t(kh)], 0, column};
  }

  void leave() {
    for (; !saved_.empty(); saved_.pop_back()) assembler_.pop(saved_.back());
  }

 private:
  static constexpr Register kSpare = Register::rax;
  // Taken from the end; those that need not be saved first. A filter of one tap leaves kOutputs alone.
  static constexpr Register kFree[] = {Register::r15, Register::r14, Register::r13, Register::r12,
                                       Register::rbp, Register::rbx, kOutputs,      Register::r11,
                                       Register::r10, Register::r9,  Register::r8};
  static_assert(std::size(kFree) == 1 + JitTaps::kMaxRows);

  static size_t column_offset(int64_t kw) { return offsetof(JitTaps, columns) + size_t(kw) * 8; }

  Assembler& assembler_;
  int64_t kernel_w_, taps_;
  int64_t channel_ = 0;  // that rows_ point to
  Register channel_bytes_;
  std::vector<Register> rows_, columns_, saved_;
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
  Program(const CsrView<float>& weight, int64_t kernel_h, int64_t kernel_w) {
    view_.rows = weight.rows, view_.cols = weight.cols, view_.nnz = weight.nnz;
    view_.kernel_h = kernel_h, view_.kernel_w = kernel_w;
    const int64_t blocks = (weight.rows + kSums - 1) / kSums;
    view_.block_rows = blocks == 0 ? 1 : (weight.rows + blocks - 1) / blocks;  // 64 rows as 22 + 22 + 20
    // Columns that stay together.
    const int64_t unit = std::max<int64_t>(kernel_h * kernel_w, 1);
    const int64_t units = weight.cols / unit, most = std::max<int64_t>(kPanelBytes / jit::kVectorBytes / unit, 1);
    const int64_t panels = std::max<int64_t>((units + most - 1) / most, 1);
    view_.panel_cols = std::max<int64_t>((units + panels - 1) / panels, 1) * unit;
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
                        static_cast<int>(view_.rows_of({block, block + 1}).size()));
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

  void write_segment(Assembler& assembler, const BlockColumns& columns, Range panel, int rows) {
    if (view_.kernel_h == 0) {
      write_code(assembler, PanelColumns(assembler), columns, panel, rows);
    } else {
      write_code(assembler, TapColumns(assembler, view_.kernel_h, view_.kernel_w), columns, panel, rows);
    }
  }

  template <class Columns>
  void write_code(Assembler& assembler, Columns x, const BlockColumns& columns, Range panel, int rows) {
    const auto sums = [](int row) { return Address{kSumsOut, row * int32_t(JitView::kSumsStride * sizeof(float))}; };
    for (int row = 0; row < rows; ++row) {
      if (panel.begin == 0) {
        assembler.zero(row);
      } else {
        assembler.load(row, sums(row));
      }
    }
    Cursor values(assembler, kValues, sizeof(float));
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
    x.leave();
    if (view_.writes_outputs() && panel.end == view_.cols) {
      write_outputs(assembler, rows);
    } else {
      for (int row = 0; row < rows; ++row) assembler.store(sums(row), row);
    }
    assembler.ret();
  }

  // See JitOutputs. All registers but those of the arguments are free.
  static void write_outputs(Assembler& assembler, int rows) {
    constexpr Register kResidual = Register::r8, kResidualStride = Register::r9, kY = Register::r10,
                       kYStride = Register::r11, kBias = Register::rax;
    constexpr int kLeast = kSums, kMost = kSums + 1;
    const auto member = [](size_t offset) { return Address{kOutputs, static_cast<int32_t>(offset)}; };
    assembler.load(kResidual, member(offsetof(JitOutputs, residual)));
    assembler.load(kResidualStride, member(offsetof(JitOutputs, residual_stride)));
    assembler.load(kY, member(offsetof(JitOutputs, y)));
    assembler.load(kYStride, member(offsetof(JitOutputs, y_stride)));
    assembler.load(kBias, member(offsetof(JitOutputs, bias)));
    assembler.broadcast(kLeast, member(offsetof(JitOutputs, least)));
    assembler.broadcast(kMost, member(offsetof(JitOutputs, most)));
    for (int row = 0; row < rows; ++row) {
      assembler.add(row, Address{kResidual});
      assembler.add_broadcast(row, {kBias, row * int32_t(sizeof(float))});
      assembler.max(row, kLeast);
      assembler.min(row, kMost);
      assembler.store({kY}, row);
      assembler.add(kResidual, kResidualStride);
      assembler.add(kY, kYStride);
    }
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

std::shared_ptr<const JitProgram> JitProgram::generate(const CsrView<float>& weight, int64_t kernel_h,
                                                       int64_t kernel_w) {
  if (!has_generator() || kernel_h > JitTaps::kMaxRows || kernel_w > JitTaps::kMaxColumns) return nullptr;
  auto program = std::make_shared<Program>(weight, kernel_h, kernel_w);
  return program->generate(weight) ? program : nullptr;
}

}  // namespace sparsecore
