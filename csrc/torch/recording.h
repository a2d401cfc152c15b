// A network runs the same kernels on the same buffers again and again. A recording keeps what its operations worked out
// once (checked arguments, the kernel, the split over threads), so that a replay does nothing but run kernels:
//
//   record_begin(recording, out, externals)   from here on, on this thread, operations put their result into `out`
//   some operation                            and every kernel that they run is also kept as a step
//   record_end(recording)                     -> number of steps, or -1 if one cannot be kept
//   replay(recording, begin, end, externals)  runs steps [begin, end) on other externals of the same sizes
//
// A pointer of a step lies in the recording's buffer, which stays, or in an external tensor, which comes anew with
// every replay. Weights are kept alive by the recording; they were validated when it was made.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sparsecore/kernel.h"
#include "sparsecore/split.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// At least `bytes` of 64-byte aligned memory that belongs to the calling thread until its next call. Kept between
// calls, because fresh pages from the system cost more than many a small layer.
void* thread_scratch(int64_t bytes);

// An external tensor of a replay.
struct External {
  char* base;
  int64_t bytes;
};

// Where a step reads or writes: in the external tensor of that number, which must be of that size, or, below 0, at a
// fixed address.
struct Address {
  int64_t external = -1;
  int64_t bytes = 0;
  int64_t offset = 0;
  void* fixed = nullptr;

  void* resolve(std::span<const External> externals) const {
    if (external < 0) return fixed;
    check(external < static_cast<int64_t>(externals.size()) && externals[static_cast<size_t>(external)].bytes == bytes,
          "expected external tensors of the sizes that were recorded");
    return externals[static_cast<size_t>(external)].base + offset;
  }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(std::span<const External> externals) const = 0;
};

// Calls function(tasks) for what each thread does, on torch's threads.
template <class Function>
void run_shares(const std::vector<std::vector<Task>>& shares, Function function) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) function(shares[static_cast<size_t>(share)]);
  };
  const int64_t num_shares = static_cast<int64_t>(shares.size());
  if (num_shares <= 1) {
    run(0, num_shares);
  } else {
    torch::stable::parallel_for(0, num_shares, 1, run);
  }
}

// Arguments whose tensors that change are x, y, the residual and the scale, as far as there are such.
template <class Args>
concept Recordable = requires(Args args, const void* input, void* output) {
  args.x = input;
  args.y = output;
};

template <class Args>
class KernelStep final : public Step {
 public:
  KernelStep(const Kernel<Args>& kernel, const Args& args, std::vector<std::vector<Task>> shares, Address x, Address y,
             Address residual, Address scale)
      : kernel_(kernel),
        args_(args),
        shares_(std::move(shares)),
        scratch_bytes_(kernel.scratch_bytes(args)),
        x_(x),
        y_(y),
        residual_(residual),
        scale_(scale) {}

  void run(std::span<const External> externals) const override {
    Args args = args_;
    args.x = x_.resolve(externals);
    args.y = y_.resolve(externals);
    if constexpr (requires { args.residual; }) args.residual = residual_.resolve(externals);
    if constexpr (requires { args.scale; }) args.scale = static_cast<const float*>(scale_.resolve(externals));
    run_shares(shares_, [&](const std::vector<Task>& tasks) {
      for (const Task& task : tasks) kernel_.run(args, task.rows, task.tiles, thread_scratch(scratch_bytes_));
    });
  }

 private:
  Kernel<Args> kernel_;
  Args args_;
  std::vector<std::vector<Task>> shares_;
  int64_t scratch_bytes_;
  Address x_, y_, residual_, scale_;
};

class Recording {
 public:
  explicit Recording(const Tensor& buffer) : buffer_(buffer) {}

  // --- while operations run on the thread that records ---

  void begin(const Tensor& out, const std::vector<Tensor>& externals);
  int64_t end();  // steps so far, or -1: what came since begin() is forgotten

  // The tensor that the operation is about to make, if it fits.
  std::optional<Tensor> take_output(const std::vector<int64_t>& shape, ScalarType dtype);
  void keep(const Tensor& tensor) { kept_.push_back(tensor); }
  void refuse() { is_refused_ = true; }

  template <class Args>
  void add(const Kernel<Args>& kernel, const Args& args, const std::vector<std::vector<Task>>& shares) {
    if constexpr (Recordable<Args>) {
      const Address x = address_of(args.x), y = address_of(args.y);
      Address residual, scale;
      if constexpr (requires { args.residual; }) residual = address_of(args.residual);
      // One for each image comes from the network, one for each channel is a constant of it.
      if constexpr (requires { args.scale; }) scale = address_of(args.scale, args.scale_batch_stride == 0);
      steps_.push_back(std::make_unique<KernelStep<Args>>(kernel, args, shares, x, y, residual, scale));
    } else {
      refuse();
    }
  }

  // --- afterwards ---

  void replay(int64_t begin, int64_t end, const std::vector<Tensor>& externals) const;

 private:
  // Refuses what is neither in the buffer nor in an external, unless it may be a weight.
  Address address_of(const void* pointer, bool may_be_weight = false);

  Tensor buffer_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<Tensor> kept_;

  // between begin() and end()
  std::optional<Tensor> out_;
  std::vector<Tensor> externals_;
  size_t first_step_ = 0, first_kept_ = 0;
  bool is_refused_ = false;
};

// The recording that the calling thread is making, or null.
Recording* active_recording();

// Keeps a weight alive that a step will read.
inline void keep_for_replay(const Tensor& tensor) {
  if (Recording* recording = active_recording()) recording->keep(tensor);
}

}  // namespace sparsecore::torch_binding
