// torch.ops.sparsecore.recording_*: see recording.h. A recording is known to Python by a number.
#include "torch/recording.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

#include "torch/numbered.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {
namespace {

thread_local Recording* g_active = nullptr;

Numbered<Recording>& recordings() {
  static auto* all = new Numbered<Recording>("recording");  // outlives tensors that Python frees at exit
  return *all;
}

int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * static_cast<int64_t>(tensor.element_size()); }

// Offset of a pointer in memory, or -1.
int64_t offset_in(const void* memory, int64_t bytes, const void* pointer) {
  const char* base = static_cast<const char*>(memory);
  const char* p = static_cast<const char*>(pointer);
  return base != nullptr && base <= p && p < base + bytes ? p - base : -1;
}
int64_t offset_in(const Tensor& tensor, const void* pointer) {
  return offset_in(tensor.const_data_ptr(), bytes_of(tensor), pointer);
}

void check_external(const Tensor& tensor) {
  check(tensor.is_cpu() && tensor.is_contiguous(), "expected contiguous tensors on the CPU");
}

}  // namespace

Recording* active_recording() { return g_active; }

void Recording::begin(const Tensor& out, const std::vector<Tensor>& externals) {
  check(g_active == nullptr, "expected one recording at a time on a thread");
  for (const Tensor& tensor : externals) check_external(tensor);
  check(offset_in(buffer_, out.const_data_ptr()) >= 0 || out.numel() == 0, "expected out in the recording's buffer");
  out_ = out;
  externals_ = externals;
  first_step_ = steps_.size();
  first_kept_ = kept_.size();
  first_numbers_ = numbers_.size();
  scratch_ = nullptr;
  is_refused_ = false;
  g_active = this;
}

int64_t Recording::end() {
  check(g_active == this, "expected record_begin() before record_end()");
  g_active = nullptr;
  // An operation that made its result elsewhere, or none that runs a kernel.
  const bool is_recorded = !is_refused_ && !out_ && steps_.size() > first_step_;
  if (!is_recorded) {
    steps_.resize(first_step_);
    kept_.resize(first_kept_);
    numbers_.resize(first_numbers_);
  }
  out_.reset();
  externals_.clear();
  return is_recorded ? static_cast<int64_t>(steps_.size()) : -1;
}

std::optional<Tensor> Recording::take_output(const std::vector<int64_t>& shape, ScalarType dtype) {
  if (!out_ || shape_of(*out_) != shape || out_->scalar_type() != dtype || !out_->is_contiguous()) {
    refuse();
    return std::nullopt;
  }
  return std::exchange(out_, std::nullopt);
}

void Recording::use_scratch(void* memory, int64_t bytes) {
  scratch_ = memory;
  scratch_size_ = bytes;
  scratch_bytes_ = std::max(scratch_bytes_, bytes);
}

Address Recording::address_of(const void* pointer) {
  if (pointer == nullptr) return {};
  for (size_t i = 0; i < externals_.size(); ++i) {
    if (const int64_t offset = offset_in(externals_[i], pointer); offset >= 0) {
      return {static_cast<int64_t>(i), bytes_of(externals_[i]), offset, nullptr};
    }
  }
  const int64_t in_scratch = offset_in(scratch_, scratch_size_, pointer);
  if (in_scratch >= 0) return {Address::kScratch, 0, in_scratch, nullptr};
  const bool is_own = offset_in(buffer_, pointer) >= 0 || std::ranges::any_of(numbers_, [&](const Numbers& numbers) {
                        return offset_in(numbers.begin, numbers.bytes, pointer) >= 0;
                      });
  if (!is_own) refuse();
  return {Address::kFixed, 0, 0, const_cast<void*>(pointer)};
}

void Recording::replay(int64_t begin, int64_t end, const std::vector<Tensor>& externals, double* times) const {
  check(0 <= begin && begin <= end && end <= num_steps(), "expected steps inside of [0, ", num_steps(), "], got [",
        begin, ", ", end, "]");
  Memory memory;
  memory.externals.reserve(externals.size());
  for (const Tensor& tensor : externals) {
    check_external(tensor);
    memory.externals.push_back({static_cast<char*>(tensor.mutable_data_ptr()), bytes_of(tensor)});
  }
  if (scratch_bytes_ > 0) memory.scratch = static_cast<char*>(call_scratch(scratch_bytes_));
  using Clock = std::chrono::steady_clock;
  Clock::time_point start = Clock::now();
  for (int64_t i = begin; i < end; ++i) {
    steps_[static_cast<size_t>(i)]->run(memory);
    if (times == nullptr) continue;
    const Clock::time_point stop = Clock::now();
    times[i] += std::chrono::duration<double, std::micro>(stop - start).count();
    start = stop;
  }
}

namespace {

int64_t recording_new(const Tensor& buffer) {
  check_external(buffer);
  return recordings().add(std::make_shared<Recording>(buffer));
}
void recording_free(int64_t recording) { recordings().erase(recording); }
void record_begin(int64_t recording, const Tensor& out, const std::vector<Tensor>& externals) {
  recordings().find(recording)->begin(out, externals);
}
int64_t record_end(int64_t recording) { return recordings().find(recording)->end(); }
void replay(int64_t recording, int64_t begin, int64_t end, const std::vector<Tensor>& externals) {
  recordings().find(recording)->replay(begin, end, externals);
}
void replay_timed(int64_t recording, int64_t begin, int64_t end, const std::vector<Tensor>& externals,
                  const Tensor& times) {
  const std::shared_ptr<Recording> found = recordings().find(recording);
  check_external(times);
  check(times.scalar_type() == ScalarType::Double && times.numel() == found->num_steps(), "expected times [",
        found->num_steps(), "] float64");
  found->replay(begin, end, externals, times.mutable_data_ptr<double>());
}

// Slice i of a batch: recordings[i] on its externals, then its results, which lie in the recording's buffer, to its
// outputs. The externals, results and outputs of all slices come one after the other. Thread t runs the slices
// [first[t], first[t + 1]) in turn; no recording belongs to two threads.
void replay_slices(const std::vector<int64_t>& numbers, const std::vector<int64_t>& first,
                   const std::vector<Tensor>& externals, const std::vector<Tensor>& results,
                   const std::vector<Tensor>& outputs) {
  const size_t count = numbers.size();
  check(count > 0 && externals.size() % count == 0 && results.size() % count == 0 && results.size() == outputs.size(),
        "expected as many externals, results and outputs for every slice");
  check(first.size() >= 2 && first.front() == 0 && first.back() == static_cast<int64_t>(count) &&
            std::ranges::is_sorted(first),
        "expected the first slice of each thread, and the number of slices");
  std::vector<std::shared_ptr<Recording>> found;
  for (const int64_t number : numbers) found.push_back(recordings().find(number));
  for (size_t t = 1; t + 1 < first.size(); ++t) {
    const auto middle = found.begin() + first[t];
    check(std::find_first_of(found.begin(), middle, middle, found.end()) == middle,
          "expected recordings of its own for every thread");
  }
  for (size_t i = 0; i < results.size(); ++i) {
    check_external(results[i]);
    check_external(outputs[i]);
    check(bytes_of(results[i]) == bytes_of(outputs[i]), "expected outputs of the results' sizes");
  }
  const size_t num_externals = externals.size() / count, num_results = results.size() / count;
  const auto run_slice = [&](size_t slice) {
    const auto begin = externals.begin() + static_cast<int64_t>(slice * num_externals);
    const Recording& recording = *found[slice];
    recording.replay(0, recording.num_steps(), {begin, begin + static_cast<int64_t>(num_externals)});
    for (size_t i = slice * num_results; i < (slice + 1) * num_results; ++i) {
      const auto* from = static_cast<const char*>(results[i].const_data_ptr());
      std::copy_n(from, bytes_of(results[i]), static_cast<char*>(outputs[i].mutable_data_ptr()));
    }
  };
  std::vector<Range> shares;
  for (size_t t = 0; t + 1 < first.size(); ++t) shares.push_back({first[t], first[t + 1]});
  std::vector<std::exception_ptr> problems(count);  // under the slice that did not run
  run_shares(shares, [&](Range slices) {            // of one thread alone, the steps themselves may use several
    for (int64_t slice = slices.begin; slice < slices.end; ++slice) {
      try {
        run_slice(static_cast<size_t>(slice));
      } catch (...) {
        problems[static_cast<size_t>(slice)] = std::current_exception();
        return;
      }
    }
  });
  for (const std::exception_ptr& problem : problems) {
    if (problem != nullptr) std::rethrow_exception(problem);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("recording_new(Tensor buffer) -> int");
  m.def("recording_free(int recording) -> ()");
  m.def("record_begin(int recording, Tensor out, Tensor[] externals) -> ()");
  m.def("record_end(int recording) -> int");
  m.def("replay(int recording, int begin, int end, Tensor[] externals) -> ()");
  m.def("replay_timed(int recording, int begin, int end, Tensor[] externals, Tensor times) -> ()");
  m.def("replay_slices(int[] recordings, int[] first, Tensor[] externals, Tensor[] results, Tensor[] outputs) -> ()");
}

// Without a tensor among the arguments there is nothing to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(sparsecore, CompositeExplicitAutograd, m) {
  m.impl("recording_new", TORCH_BOX(&recording_new));
  m.impl("recording_free", TORCH_BOX(&recording_free));
  m.impl("record_begin", TORCH_BOX(&record_begin));
  m.impl("record_end", TORCH_BOX(&record_end));
  m.impl("replay", TORCH_BOX(&replay));
  m.impl("replay_timed", TORCH_BOX(&replay_timed));
  m.impl("replay_slices", TORCH_BOX(&replay_slices));
}

}  // namespace sparsecore::torch_binding
