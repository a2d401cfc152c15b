// What int8 weights are packed for: the widest integer dot product and byte shuffle that are enabled decide. Each row
// is what the kernels of its instruction set support.
#include "sparsecore/ops.h"

namespace sparsecore {

Int8Packing int8_packing(bool few_positions) {
  if (isa_enabled(Isa::kAvx512Vbmi)) return {16, few_positions ? 256 : 64, false};
  if (isa_enabled(Isa::kAvx512Vnni)) return {16, 16, false};
  if (isa_enabled(Isa::kAvxVnni)) return {8, 16, false};
  if (isa_enabled(Isa::kAvx2)) return {8, 16, true};
  return {4, 16, false};
}

}  // namespace sparsecore
