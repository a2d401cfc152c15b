#include "jit/executable.h"

#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace sparsecore::jit {

#if defined(__unix__) || defined(__APPLE__)

std::unique_ptr<Executable> Executable::copy_of(std::span<const uint8_t> code) {
  if (code.empty()) return nullptr;
  void* memory = mmap(nullptr, code.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  std::memcpy(memory, code.data(), code.size());
  if (mprotect(memory, code.size(), PROT_READ | PROT_EXEC) != 0) {
    munmap(memory, code.size());
    return nullptr;
  }
  return std::unique_ptr<Executable>(new Executable(memory, code.size()));
}

Executable::~Executable() { munmap(memory_, size_); }

#else

std::unique_ptr<Executable> Executable::copy_of(std::span<const uint8_t>) { return nullptr; }
Executable::~Executable() = default;

#endif

}  // namespace sparsecore::jit
