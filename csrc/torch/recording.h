// A network runs the same kernels on the same buffers again and again. A recording keeps what its operations worked out
// once (checked arguments, the kernel, the split over threads), so that a replay does nothing but run kernels:
//
//   record_begin(recording, out, externals)   from here on, on this thread, operations put their result into `out`
//   some operation                            and every kernel that they run is also kept as a step
//   record_end(recording)                     -> number of steps, or -1 if one cannot be kept
//   replay(recording, begin, end, externals)  runs steps [begin, end) on other externals of the same sizes
//   replay_timed(..., times)                  the same, and adds the microseconds of each step to times[step]
//   replay_slices(recordings, ...)            whole recordings, several side by side, each on slices of a batch
//
// A pointer of a step lies in the recording's buffer, which stays, or in an external tensor, which comes anew with
// every replay. Weights are kept alive by the recording; they were validated when it was made.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "sparsecore/kernel.h"
#include "sparsecore/split.h"
#include "torch/checks.h"

namespace sparsecore::torch_binding {

// At least `bytes` of 64-byte aligned memory that belongs to the calling thread until its next call. Kept between
// calls, because fresh pages from the system cost more than many a small layer.
void* thread_scratch(int64_t bytes);

// Like thread_scratch(), for what one operation makes for all of its threads.
void* call_scratch(int64_t bytes);

// An external tensor of a replay.
struct External {
  char* base;
  int64_t bytes;
};

// What a replay brings: external tensors, and memory that operations only use while they run.
struct Memory {
  std::vector<External> externals;
  char* scratch = nullptr;
};

// Where a step reads or writes: in the external tensor of that number, which must be of that size; in the scratch; or
// at a fixed address.
struct Address {
  static constexpr int64_t kFixed = -1, kScratch = -2;
  int64_t external = kFixed;
  int64_t bytes = 0;
  int64_t offset = 0;
  void* fixed = nullptr;

  void* resolve(const Memory& memory) const {
    if (external == kFixed) return fixed;
    if (external == kScratch) return memory.scratch + offset;
    check(external < static_cast<int64_t>(memory.externals.size()) &&
              memory.externals[static_cast<size_t>(external)].bytes == bytes,
          "expected external tensors of the sizes that were recorded");
    return memory.externals[static_cast<size_t>(external)].base + offset;
  }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Memory& memory) const = 0;
};

// Calls function(share) for what each thread does, on torch's threads.
template <class Share, class Function>
void run_shares(const std::vector<Share>& shares, Function function) {
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

// Calls function(pointer) for all pointers among a kernel's arguments to what may be new in every run.
template <class Args, class Function>
void for_each_pointer(Args& args, Function function) {
  if constexpr (requires { args.x.segment_offset; }) {
    function(args.x.x);
    function(args.x.scale);
  } else {
    function(args.x);
  }
  if constexpr (requires { args.y; }) function(args.y);
  if constexpr (requires { args.residual; }) function(args.residual);
  if constexpr (requires { args.scale_batch_stride; }) {
    if (args.scale_batch_stride != 0) function(args.scale);  // one for each channel is a constant of the network
  } else if constexpr (requires { args.scale; }) {
    function(args.scale);
  }
  if constexpr (requires { args.out; }) function(args.out);
}

template <class Args>
class KernelStep final : public Step {
 public:
  KernelStep(const Kernel<Args>& kernel, const Args& args, std::vector<std::vector<Task>> shares,
             std::vector<Address> addresses)
      : kernel_(kernel),
        args_(args),
        shares_(std::move(shares)),
        scratch_bytes_(kernel.scratch_bytes(args)),
        addresses_(std::move(addresses)) {}

  void run(const Memory& memory) const override {
    Args args = args_;
    const Address* address = addresses_.data();
    for_each_pointer(args, [&](auto& pointer) {
      pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(address++->resolve(memory));
    });
    run_shares(shares_, [&](const std::vector<Task>& tasks) {
      for (const Task& task : tasks) kernel_.run(args, task.rows, task.tiles, thread_scratch(scratch_bytes_));
    });
  }

 private:
  Kernel<Args> kernel_;
  Args args_;
  std::vector<std::vector<Task>> shares_;
  int64_t scratch_bytes_;
  std::vector<Address> addresses_;
};

class [[gnu::visibility("hidden")]] Recording {
 public:
  explicit Recording(const Tensor& buffer) : buffer_(buffer) {}

  // --- while operations run on the thread that records ---

  void begin(const Tensor& out, const std::vector<Tensor>& externals);
  int64_t end();  // steps so far, or -1: what came since begin() is forgotten

  // The tensor that the operation is about to make, if it fits.
  std::optional<Tensor> take_output(const std::vector<int64_t>& shape, ScalarType dtype);
  // What steps read stays alive as long as the recording.
  void keep(std::shared_ptr<const void> owner) { kept_.push_back(std::move(owner)); }
  void keep(const Tensor& tensor) { keep(std::make_shared<Tensor>(tensor)); }
  void refuse() { is_refused_ = true; }

  // Memory of the thread that the operation uses while it runs; a replay gives it another.
  void use_scratch(void* memory, int64_t bytes);

  // A copy of an operation's own numbers that lives as long as the recording.
  template <class T>
  const T* keep_numbers(const std::vector<T>& numbers) {
    auto copy = std::make_shared<std::vector<T>>(numbers);
    numbers_.push_back({copy, copy->data(), static_cast<int64_t>(numbers.size() * sizeof(T))});
    return copy->data();
  }

  template <class Args>
  void add(const Kernel<Args>& kernel, Args args, const std::vector<std::vector<Task>>& shares) {
    std::vector<Address> addresses;
    for_each_pointer(args, [&](auto& pointer) { addresses.push_back(address_of(pointer)); });
    if constexpr (requires { args.x.segment_offset; }) {
      const int64_t* offsets = args.x.segment_offset;
      args.x.segment_offset = keep_numbers(std::vector<int64_t>(offsets, offsets + args.weight.segments));
    }
    steps_.push_back(std::make_unique<KernelStep<Args>>(kernel, args, shares, std::move(addresses)));
  }

  // --- afterwards ---

  // times: null, or of each step, to which its microseconds are added.
  void replay(int64_t begin, int64_t end, const std::vector<Tensor>& externals, double* times = nullptr) const;

  int64_t num_steps() const { return static_cast<int64_t>(steps_.size()); }

 private:
  // Refuses what is neither the recording's own nor in an external.
  Address address_of(const void* pointer);

  struct Numbers {
    std::shared_ptr<void> owner;
    const void* begin;
    int64_t bytes;
  };

  Tensor buffer_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<std::shared_ptr<const void>> kept_;
  std::vector<Numbers> numbers_;
  int64_t scratch_bytes_ = 0;

  // between begin() and end()
  std::optional<Tensor> out_;
  std::vector<Tensor> externals_;
  const void* scratch_ = nullptr;  // of the operation that runs, and its size
  int64_t scratch_size_ = 0;
  size_t first_step_ = 0, first_kept_ = 0, first_numbers_ = 0;
  bool is_refused_ = false;
};

// The recording that the calling thread is making, or null.
Recording* active_recording();

// Keeps a weight alive that a step will read.
inline void keep_for_replay(const Tensor& tensor) {
  if (Recording* recording = active_recording()) recording->keep(tensor);
}

}  // namespace sparsecore::torch_binding
