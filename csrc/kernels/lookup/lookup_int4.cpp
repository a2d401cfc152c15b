// The table of the lookup product with 4-bit values. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<LookupInt4Args> lookup_u8s4_avx512vbmi();
Kernel<LookupInt4Args> lookup256_u8s4_avx512vbmi();
Kernel<LookupInt4Args> lookup_u8s4_avx512vnni();
Kernel<LookupInt4Args> lookup_u8s4_avxvnni();
Kernel<LookupInt4Args> lookup_u8s4_avx2();
Kernel<LookupInt4Args> lookup_u8s4_neondot();
Kernel<LookupInt4Args> lookup_u8s4_neon();
Kernel<LookupInt4Args> lookup_u8s4_scalar();

std::span<const Kernel<LookupInt4Args>> lookup_int4_kernels() {
  static const Kernel<LookupInt4Args> table[] = {
#if defined(__x86_64__)
      lookup_u8s4_avx512vbmi(), lookup256_u8s4_avx512vbmi(), lookup_u8s4_avx512vnni(),
      lookup_u8s4_avxvnni(),    lookup_u8s4_avx2(),
#elif defined(__aarch64__)
      lookup_u8s4_neondot(),
      lookup_u8s4_neon(),
#endif
      lookup_u8s4_scalar(),
  };
  return table;
}

}  // namespace sparsecore
