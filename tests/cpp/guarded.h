// Buffers that lie flush against a page nobody may touch, so that reading or writing one element too far faults.
//
//   Guard::kAfter    | no access | ..... canary | data | no access |    finds accesses past the end
//   Guard::kBefore   | no access | data | canary ..... | no access |    finds accesses before the beginning
//
// Writes on the open side land in the canary, which the destructor checks. Works the same under AddressSanitizer.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "random.h"

namespace sparsecore::test {

enum class Guard { kAfter, kBefore };

// A power of two of pages between two guard pages; kept for reuse, because mapping costs more than a small test.
class Pages {
 public:
  static Pages take(int64_t bytes) {
    const int bucket = std::bit_width(static_cast<uint64_t>(bytes / page_bytes()));
    std::vector<Pages>& stock = stock_of(bucket);
    if (stock.empty()) return Pages(bucket);
    Pages result = std::move(stock.back());
    stock.pop_back();
    return result;
  }

  Pages(Pages&& other) noexcept : bucket_(other.bucket_), map_(std::exchange(other.map_, nullptr)) {}
  Pages& operator=(Pages&&) = delete;
  ~Pages() {
    if (map_ != nullptr) munmap(map_, static_cast<size_t>(mapped_bytes()));
  }

  void give_back() && { stock_of(bucket_).push_back(std::move(*this)); }

  uint8_t* begin() const { return map_ + page_bytes(); }
  uint8_t* end() const { return begin() + (page_bytes() << bucket_); }

 private:
  static constexpr int kBuckets = 40;

  explicit Pages(int bucket) : bucket_(bucket) {
    void* map = mmap(nullptr, static_cast<size_t>(mapped_bytes()), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<uint8_t*>(map);
    if (mprotect(begin(), static_cast<size_t>(end() - begin()), PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }

  static int64_t page_bytes() {
    static const int64_t bytes = sysconf(_SC_PAGESIZE);
    return bytes;
  }
  static std::vector<Pages>& stock_of(int bucket) {
    static std::vector<Pages> stocks[kBuckets];
    return stocks[bucket];
  }
  int64_t mapped_bytes() const { return (page_bytes() << bucket_) + 2 * page_bytes(); }

  int bucket_;
  uint8_t* map_ = nullptr;
};

template <class T>
class Buffer {
 public:
  Buffer() : Buffer(0, Guard::kAfter) {}

  Buffer(int64_t size, Guard guard, int64_t alignment = alignof(T))
      : size_(size), pages_(Pages::take(size * int64_t(sizeof(T)) + kCanaryBytes + alignment)) {
    const int64_t bytes = size * int64_t(sizeof(T));
    if (guard == Guard::kBefore) {
      data_ = reinterpret_cast<T*>(pages_.begin());
    } else {
      const auto last = reinterpret_cast<uintptr_t>(pages_.end() - bytes);
      data_ = reinterpret_cast<T*>(last / static_cast<uintptr_t>(alignment) * static_cast<uintptr_t>(alignment));
    }
    const Canary canary = find_canary();
    std::memset(canary.before, kCanary, static_cast<size_t>(canary.before_bytes));
    std::memset(canary.after, kCanary, static_cast<size_t>(canary.after_bytes));
  }

  Buffer(const std::vector<T>& content, Guard guard) : Buffer(static_cast<int64_t>(content.size()), guard) {
    std::copy(content.begin(), content.end(), data_);
  }

  Buffer(Buffer&& other) noexcept
      : size_(other.size_), pages_(std::move(other.pages_)), data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&&) = delete;

  ~Buffer() {
    if (data_ == nullptr) return;
    EXPECT_TRUE(is_intact()) << "written outside of a buffer of " << size_ << " elements";
    std::move(pages_).give_back();
  }

  bool is_intact() const {
    const Canary canary = find_canary();
    const auto is_canary = [](uint8_t byte) { return byte == kCanary; };
    return std::all_of(canary.before, canary.before + canary.before_bytes, is_canary) &&
           std::all_of(canary.after, canary.after + canary.after_bytes, is_canary);
  }

  int64_t size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  static constexpr int64_t kCanaryBytes = 256;  // four cache lines: more than any vector store
  static constexpr uint8_t kCanary = 0xa7;

  struct Canary {
    uint8_t* before;
    int64_t before_bytes;
    uint8_t* after;
    int64_t after_bytes;
  };
  Canary find_canary() const {
    uint8_t* const first = reinterpret_cast<uint8_t*>(data_);
    uint8_t* const last = first + size_ * int64_t(sizeof(T));
    const int64_t before = std::min<int64_t>(first - pages_.begin(), kCanaryBytes);
    return {first - before, before, last, std::min<int64_t>(pages_.end() - last, kCanaryBytes)};
  }

  int64_t size_;
  Pages pages_;
  T* data_ = nullptr;
};

// A NaN that no arithmetic makes: outputs are filled with it, so that elements nobody wrote are found.
inline constexpr uint32_t kUnwrittenBits = 0x7fdeadbe;
inline bool is_unwritten(float value) { return std::bit_cast<uint32_t>(value) == kUnwrittenBits; }

inline Buffer<float> unwritten_output(int64_t size, Guard guard) {
  Buffer<float> y(size, guard);
  std::fill(y.begin(), y.end(), std::bit_cast<float>(kUnwrittenBits));
  return y;
}

// For inputs with padding: whoever reads the padding gets NaN into the result.
inline Buffer<float> poisoned_input(int64_t size, Guard guard) {
  Buffer<float> x(size, guard);
  std::fill(x.begin(), x.end(), std::numeric_limits<float>::quiet_NaN());
  return x;
}

// One number of one of the buffers becomes another, any of its type or a small one.
template <class... Buffers>
void damage_one(Random& random, Buffers&... buffers) {
  const int64_t chosen = random.integer(0, int64_t(sizeof...(buffers)) - 1);
  int64_t at = 0;
  const auto damage = [&](auto& buffer) {
    using T = std::remove_reference_t<decltype(buffer[0])>;
    if (at++ != chosen) return;
    auto& number = buffer[random.integer(0, buffer.size() - 1)];
    number = static_cast<T>(random.chance(0.5) ? random.next() : random.next() % 8);
  };
  (damage(buffers), ...);
}

}  // namespace sparsecore::test
