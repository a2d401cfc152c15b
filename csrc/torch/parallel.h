// Runs a kernel on torch's threads: split by work, scratch from the thread that computes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <span>
#include <string>
#include <vector>

#include "sparsecore/kernel.h"
#include "sparsecore/ops.h"
#include "sparsecore/pack.h"
#include "sparsecore/split.h"
#include "torch/checks.h"
#include "torch/recording.h"

namespace sparsecore::torch_binding {

// Multiply-adds that are worth a thread: waking it takes about 5 us, in which another does some 100 000.
inline constexpr int64_t kWorkPerThread = 50'000;

template <class Args>
const Kernel<Args>& choose_kernel(std::span<const Kernel<Args>> table, const std::string& name, const Args& args) {
  if (name.empty()) return select_kernel(table, args);
  const Kernel<Args>* kernel = find_kernel<Args>(table, name, args);
  if (kernel == nullptr) {
    std::string names;
    for (const Kernel<Args>& row : table) {
      if (isa_enabled(row.isa) && row.supports(args)) names += (names.empty() ? "" : ", ") + std::string(row.name);
    }
    fail("expected a kernel that this CPU and shape allow (", names, "), got '", name, "'");
  }
  return *kernel;
}

// Multiply-adds per column of activations.
template <class View>
int64_t stored_values(const View& weight) {
  return weight.nnz;
}
template <class T>
int64_t stored_values(const BlockCsrView<T>& weight) {
  return weight.nnz * weight.block_rows;
}

// An addition out of a table stands for four of them.
inline int64_t stored_values(const PlanesView& weight) { return weight.rows * weight.cols * weight.planes / 4; }

// No sparse weight: nothing to balance or to validate.
struct DenseRows {
  static constexpr const char* kFormat = "dense";
  int64_t rows = 0;
  const int32_t* row_ptr = nullptr;
  const char* validate(Range) const { return nullptr; }
};

template <class T>
struct CsrRows {
  static constexpr const char* kFormat = "CSR";
  CsrView<T> weight;
  int64_t rows = weight.rows;
  const int32_t* row_ptr = weight.row_ptr;
  // In every call and by the thread that is about to read these entries anyway: nothing outside is trusted, and
  // the check costs one comparison per entry beside M multiply-adds.
  const char* validate(Range range) const {
    return validate_csr(weight.cols, weight.nnz, weight.row_ptr, weight.col_idx, range);
  }
};

template <class T>
struct BlockCsrRows {
  static constexpr const char* kFormat = "block CSR";
  BlockCsrView<T> weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = weight.row_ptr;
  const char* validate(Range blocks) const {
    return validate_csr(weight.cols, weight.nnz, weight.row_ptr, weight.col_idx, blocks);
  }
};

// Blocks of rows in the panel format.
template <class T>
struct PanelRows {
  static constexpr const char* kFormat = "panel";
  PanelView<T> weight;
  int64_t rows = weight.num_blocks();
  std::vector<int32_t> entries_before = block_ptr(weight);
  const int32_t* row_ptr = entries_before.data();
  const char* validate(Range blocks) const { return validate_panel(weight, blocks); }

  // Running sum of each block's entries over all panels; nonsense in the arrays gives a bad split, not a wrong read.
  static std::vector<int32_t> block_ptr(const PanelView<T>& weight) {
    const int64_t num_blocks = weight.num_blocks();
    std::vector<int32_t> result(static_cast<size_t>(num_blocks) + 1, 0);
    for (int64_t segment = 0; segment < weight.num_segments(); ++segment) {
      const uint32_t entries = uint32_t(weight.entry_ptr[segment + 1]) - uint32_t(weight.entry_ptr[segment]);
      int32_t& sum = result[static_cast<size_t>(segment % num_blocks) + 1];
      sum = static_cast<int32_t>(uint32_t(sum) + entries);
    }
    for (size_t block = 1; block < result.size(); ++block) {
      result[block] = static_cast<int32_t>(uint32_t(result[block]) + uint32_t(result[block - 1]));
    }
    return result;
  }
};

// Blocks of rows of a program, which was generated from a valid weight.
struct JitRows {
  static constexpr const char* kFormat = "generated";
  JitView weight;
  int64_t rows = weight.num_blocks();
  const int32_t* row_ptr = weight.block_ptr;
  const char* validate(Range) const { return nullptr; }
};

// Blocks of rows in the bitmap format.
struct BitmapRows {
  static constexpr const char* kFormat = "bitmap";
  BitmapView weight;
  int64_t rows = weight.num_blocks();
  std::vector<int32_t> work_before = block_work(weight);
  const int32_t* row_ptr = work_before.data();
  const char* validate(Range blocks) const { return validate_bitmap(weight, blocks); }

  // Running sum of each block's float32s to read: its entries, and half of one for a mask. Nonsense in block_ptr gives
  // a bad split, not a wrong read.
  static std::vector<int32_t> block_work(const BitmapView& weight) {
    const int64_t num_blocks = weight.num_blocks();
    std::vector<int32_t> result(static_cast<size_t>(num_blocks) + 1);
    for (int64_t block = 0; block <= num_blocks; ++block) {
      const uint64_t masks = uint64_t(block) * uint64_t(weight.cols) / 2;
      result[static_cast<size_t>(block)] = static_cast<int32_t>(uint32_t(weight.block_ptr[block]) + uint32_t(masks));
    }
    return result;
  }
};

// The rows that any task of a share reads: tasks of several tiles share them, and once is enough to validate them.
inline Range rows_of(const std::vector<Task>& tasks) {
  Range rows = tasks.front().rows;
  for (const Task& task : tasks) {
    rows.begin = std::min(rows.begin, task.rows.begin);
    rows.end = std::max(rows.end, task.rows.end);
  }
  return rows;
}

// Pixels of the images of the output, [batch, N, pixels]; 0 if that is not its form.
template <class Args>
int64_t pixels_of(const Args& args) {
  if constexpr (requires { args.layout; }) {
    if (args.layout != Layout::kColumns) return 0;
  }
  if constexpr (requires { args.out_width; }) {
    return args.batch * args.out_height * args.out_width;
  } else if constexpr (requires { args.x.positions(); }) {
    return args.x.positions();
  } else if constexpr (requires { args.batch; }) {
    return args.batch * args.columns;
  } else {
    return 0;
  }
}

// Pixels of a thread from which on threads share images by pixels, each with what it wrote in the layer before. With
// fewer, the cache lines at the borders, two or three in every plane, cost more than that saves: planes of 14 x 14 in
// halves made MobileNetV1 5% slower, those of 28 x 28 and more ResNet-50 7% faster (90% zeros, cores 175 to 400 ns
// apart).
inline constexpr int64_t kMinThreadPixels = 256;

template <class Args, class Rows>
std::vector<std::vector<Task>> split(const Args& args, const Rows& rows, int64_t num_tiles, int64_t num_threads) {
  const int64_t pixels = pixels_of(args);
  if (num_threads > 1 && pixels > 0 && pixels < kMinThreadPixels * num_threads) {
    auto shares = split_rows(rows.row_ptr, rows.rows, num_tiles, num_threads);
    if (!shares.empty()) return shares;
  }
  return split_work(rows.row_ptr, rows.rows, num_tiles, num_threads);
}

// work: multiply-adds of the whole call.
template <class Args, class Rows>
void run_kernel(const Kernel<Args>& kernel, Args args, const Rows& rows, int64_t work) {
  const int64_t worth = work / kWorkPerThread;
  const int64_t num_threads = std::clamp<int64_t>(worth, 1, torch::stable::get_num_threads());
  if constexpr (requires { args.threads; }) {
    if (pixels_of(args) >= kMinThreadPixels * num_threads) args.threads = num_threads;
  }
  const auto shares = split(args, rows, kernel.num_tiles(args), num_threads);
  const int64_t scratch_bytes = kernel.scratch_bytes(args);
  std::atomic<const char*> problem = nullptr;
  run_shares(shares, [&](const std::vector<Task>& tasks) {
    if (const char* text = rows.validate(rows_of(tasks))) {
      problem = text;
      return;
    }
    for (const Task& task : tasks) kernel.run(args, task.rows, task.tiles, thread_scratch(scratch_bytes));
  });
  if (const char* text = problem) fail("invalid ", Rows::kFormat, " weight: ", text, "; pack it again");
  if (Recording* recording = active_recording()) recording->add(kernel, args, shares);
}

// Calls function(range) on torch's threads for parts of [0, count). Rows, or blocks of them, are independent in every
// pass of packing; work: numbers that each of them reads.
template <class Function>
void for_parts(int64_t count, int64_t work, Function function) {
  const int64_t grain = std::max<int64_t>(kWorkPerThread / std::max<int64_t>(work, 1), 1);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { function(Range{begin, end}); });
}

}  // namespace sparsecore::torch_binding
