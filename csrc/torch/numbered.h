// Objects that Python knows by a number: what is not a tensor cannot be an argument of an operation.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "torch/checks.h"

namespace sparsecore::torch_binding {

template <class T>
class Numbered {
 public:
  explicit Numbered(const char* name) : name_(name) {}

  int64_t add(std::shared_ptr<T> object) {
    const std::lock_guard lock(mutex_);
    all_[++last_] = std::move(object);
    return last_;
  }
  std::shared_ptr<T> find(int64_t number) {
    const std::lock_guard lock(mutex_);
    const auto it = all_.find(number);
    check(it != all_.end(), "expected the number of a ", name_, ", got ", number);
    return it->second;
  }
  void erase(int64_t number) {
    const std::lock_guard lock(mutex_);
    all_.erase(number);
  }

 private:
  const char* name_;
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<T>> all_;
  int64_t last_ = 0;
};

}  // namespace sparsecore::torch_binding
