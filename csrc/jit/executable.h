// Memory that holds machine code: written once, then readable and executable, never writable again.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace sparsecore::jit {

class Executable {
 public:
  // Null where the system has no such memory or refuses it (SELinux's execmem, seccomp, no memory left).
  static std::unique_ptr<Executable> copy_of(std::span<const uint8_t> code);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  const uint8_t* code() const { return static_cast<const uint8_t*>(memory_); }

 private:
  Executable(void* memory, size_t size) : memory_(memory), size_(size) {}

  void* memory_;
  size_t size_;
};

}  // namespace sparsecore::jit
