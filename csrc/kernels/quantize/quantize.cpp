// The table of the activation quantizer. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<QuantizeArgs> quantize_f32u8_avx512();
Kernel<QuantizeArgs> quantize_f32u8_avx2();
Kernel<QuantizeArgs> quantize_f32u8_neon();
Kernel<QuantizeArgs> quantize_f32u8_scalar();

std::span<const Kernel<QuantizeArgs>> quantize_kernels() {
  static const Kernel<QuantizeArgs> table[] = {
#if defined(__x86_64__)
      quantize_f32u8_avx512(),
      quantize_f32u8_avx2(),
#elif defined(__aarch64__)
      quantize_f32u8_neon(),
#endif
      quantize_f32u8_scalar(),
  };
  return table;
}

}  // namespace sparsecore
