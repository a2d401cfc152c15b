// A sparse weight as machine code for this CPU.
#pragma once

#include <memory>

#include "sparsecore/isa.h"
#include "sparsecore/views.h"

namespace sparsecore {

// Owns what a JitView points to. Code exists in memory alone: it is generated from a valid weight and never read from
// anywhere.
class JitProgram {
 public:
  virtual ~JitProgram() = default;
  virtual const JitView& view() const = 0;
  virtual int64_t nbytes() const = 0;  // of code, values and pointers

  // weight must be valid; for a convolution its columns are [channels, kernel_h, kernel_w]; for a product these are 0.
  // Linear in nnz + blocks * cols. Null if there is no generator for the instruction sets that are enabled or for a
  // filter so large, or the system has no executable memory to give.
  static std::shared_ptr<const JitProgram> generate(const CsrView<float>& weight, int64_t kernel_h = 0,
                                                    int64_t kernel_w = 0);
};

}  // namespace sparsecore
