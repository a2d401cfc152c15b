// What every kernel test shares: a test per table row, running with poisoned scratch, random splits, and the name
// of the running case for failures and faults.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <ostream>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "guarded.h"
#include "random.h"
#include "sparsecore/kernel.h"
#include "sparsecore/split.h"

namespace sparsecore::test {

// A row of one of several tables: an operation whose weight may come in several formats has a table for each.
template <class... Args>
struct AnyKernel {
  std::variant<Kernel<Args>...> row;

  const char* name() const {
    return std::visit([](const auto& kernel) { return kernel.name; }, row);
  }
  Isa isa() const {
    return std::visit([](const auto& kernel) { return kernel.isa; }, row);
  }
  friend void PrintTo(const AnyKernel& kernel, std::ostream* out) { *out << kernel.name(); }
};

template <class Args>
Args args_of(const Kernel<Args>&);  // only for decltype

// Derived test suites run once per row of each table; rows this CPU lacks or SPARSECORE_ISA disables are skipped.
template <class... Args>
class KernelTest : public ::testing::TestWithParam<AnyKernel<Args...>> {
 protected:
  void SetUp() override {
    const Isa isa = any_kernel().isa();
    if (!isa_enabled(isa)) GTEST_SKIP() << isa_name(isa) << " is not enabled on this machine";
  }
  const AnyKernel<Args...>& any_kernel() const { return this->GetParam(); }
  // Where there is only one table.
  const auto& kernel() const { return std::get<0>(this->GetParam().row); }
};

template <class... Args>
std::vector<AnyKernel<Args...>> rows_of(std::span<const Kernel<Args>>... tables) {
  std::vector<AnyKernel<Args...>> rows;
  const auto append = [&](const auto& table) {
    for (const auto& kernel : table) rows.push_back({kernel});
  };
  (append(tables), ...);
  return rows;
}

#define SPARSECORE_TEST_EACH_KERNEL(Suite, ...)                                     \
  INSTANTIATE_TEST_SUITE_P(Table, Suite, ::testing::ValuesIn(rows_of(__VA_ARGS__)), \
                           [](const auto& tested) { return std::string(tested.param.name()); })

// Names what runs: in the message of a failed check, and on stderr when a guard page is hit.
class Case {
 public:
  template <class... Parts>
  explicit Case(const Parts&... parts) : text_(join(parts...)), trace_(__FILE__, __LINE__, text_) {
    install_handler();
    current() = text_.c_str();
  }
  ~Case() { current() = nullptr; }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

 private:
  template <class... Parts>
  static std::string join(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
  }

  static const char*& current() {
    static const char* text = nullptr;
    return text;
  }

  static struct sigaction& previous(int signal) {
    static struct sigaction actions[2];
    return actions[signal == SIGSEGV];
  }

  // Prints, then lets the faulting instruction run again into whoever handled it before (sanitizer or default).
  static void report(int signal) {
    for (const char* text : {"\nguard page or other fault in case: ", current(), "\n"}) {
      if (text != nullptr) [[maybe_unused]]
        const auto written = write(STDERR_FILENO, text, std::strlen(text));
    }
    sigaction(signal, &previous(signal), nullptr);
  }

  static void install_handler() {
    static bool is_installed = false;
    if (std::exchange(is_installed, true)) return;
    for (const int signal : {SIGSEGV, SIGBUS}) {
      struct sigaction action = {};
      action.sa_handler = report;
      sigaction(signal, &action, &previous(signal));
    }
  }

  std::string text_;
  ::testing::ScopedTrace trace_;
};

// One call of run with scratch of exactly the size asked for, filled with NaN (or -1 for integers).
template <class Args>
void run_part(const Kernel<Args>& kernel, const Args& args, Range rows, Range tiles, Guard guard) {
  Buffer<uint8_t> scratch(kernel.scratch_bytes(args), guard, 64);
  std::memset(scratch.data(), 0xff, static_cast<size_t>(scratch.size()));
  kernel.run(args, rows, tiles, scratch.data());
}

template <class Args>
void run_all(const Kernel<Args>& kernel, const Args& args, int64_t num_rows, Guard guard) {
  const int64_t num_tiles = kernel.num_tiles(args);
  if (num_rows > 0 && num_tiles > 0) run_part(kernel, args, {0, num_rows}, {0, num_tiles}, guard);
}

// The same work cut at random places into calls, in random order.
template <class Args>
void run_split(const Kernel<Args>& kernel, const Args& args, Range rows, Range tiles, Random& random) {
  if (rows.size() <= 0 || tiles.size() <= 0) return;
  const bool can_cut_rows = rows.size() > 1, can_cut_tiles = tiles.size() > 1;
  if (!(can_cut_rows || can_cut_tiles) || random.chance(0.15)) {
    return run_part(kernel, args, rows, tiles, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
  }
  const bool cuts_rows = can_cut_rows && (!can_cut_tiles || random.chance(0.5));
  Range first_rows = rows, second_rows = rows, first_tiles = tiles, second_tiles = tiles;
  Range& first = cuts_rows ? first_rows : first_tiles;
  Range& second = cuts_rows ? second_rows : second_tiles;
  first.end = second.begin = random.integer(first.begin + 1, first.end - 1);
  if (random.chance(0.5)) {
    std::swap(first_rows, second_rows);
    std::swap(first_tiles, second_tiles);
  }
  run_split(kernel, args, first_rows, first_tiles, random);
  run_split(kernel, args, second_rows, second_tiles, random);
}

// As the bindings do it: each share of split_work on a thread with scratch of its own.
template <class Args>
void run_threads(const Kernel<Args>& kernel, const Args& args, int64_t num_rows, int64_t num_threads) {
  const int32_t* row_ptr = nullptr;
  if constexpr (requires { args.weight.row_ptr; }) row_ptr = args.weight.row_ptr;
  const auto shares = split_work(row_ptr, num_rows, kernel.num_tiles(args), num_threads);
  std::vector<Buffer<uint8_t>> scratches;
  for (size_t t = 0; t < shares.size(); ++t) scratches.emplace_back(kernel.scratch_bytes(args), Guard::kAfter, 64);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < shares.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const Task& task : shares[t]) kernel.run(args, task.rows, task.tiles, scratches[t].data());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

inline bool same_bits(const Buffer<float>& a, const Buffer<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(float)) == 0;
}

}  // namespace sparsecore::test
