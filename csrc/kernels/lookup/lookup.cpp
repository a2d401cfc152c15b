// The table of the lookup product. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<LookupInt8Args> lookup_u8s8_avx512vbmi();
Kernel<LookupInt8Args> lookup256_u8s8_avx512vbmi();
Kernel<LookupInt8Args> lookup_u8s8_avx512vnni();
Kernel<LookupInt8Args> lookup_u8s8_avxvnni();
Kernel<LookupInt8Args> lookup_u8s8_avx2();
Kernel<LookupInt8Args> lookup_u8s8_neondot();
Kernel<LookupInt8Args> lookup_u8s8_neon();
Kernel<LookupInt8Args> lookup_u8s8_scalar();

std::span<const Kernel<LookupInt8Args>> lookup_int8_kernels() {
  static const Kernel<LookupInt8Args> table[] = {
#if defined(__x86_64__)
      lookup_u8s8_avx512vbmi(), lookup256_u8s8_avx512vbmi(), lookup_u8s8_avx512vnni(),
      lookup_u8s8_avxvnni(),    lookup_u8s8_avx2(),
#elif defined(__aarch64__)
      lookup_u8s8_neondot(),
      lookup_u8s8_neon(),
#endif
      lookup_u8s8_scalar(),
  };
  return table;
}

}  // namespace sparsecore
