// The table of spmm for codebook weights. Best first, scalar last.
#include "sparsecore/codebook.h"

namespace sparsecore {

Kernel<SpmmCodebookArgs> spmm_codebook_f32_avx512();
Kernel<SpmmCodebookArgs> spmm_codebook_f32_avx2();
Kernel<SpmmCodebookArgs> spmm_codebook_f32_neon();
Kernel<SpmmCodebookArgs> spmm_codebook_f32_scalar();

std::span<const Kernel<SpmmCodebookArgs>> spmm_codebook_kernels() {
  static const Kernel<SpmmCodebookArgs> table[] = {
#if defined(__x86_64__)
      spmm_codebook_f32_avx512(),
      spmm_codebook_f32_avx2(),
#elif defined(__aarch64__)
      spmm_codebook_f32_neon(),
#endif
      spmm_codebook_f32_scalar(),
  };
  return table;
}

}  // namespace sparsecore
