// The table of the bitmap int8 product. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Kernel<BitmapInt8Args> bitmap_u8s8_avx512vbmi();
Kernel<BitmapInt8Args> bitmap_u8s8_avx512vnni();
Kernel<BitmapInt8Args> bitmap_u8s8_avxvnni();
Kernel<BitmapInt8Args> bitmap_u8s8_avx2();
Kernel<BitmapInt8Args> bitmap_u8s8_neondot();
Kernel<BitmapInt8Args> bitmap_u8s8_neon();
Kernel<BitmapInt8Args> bitmap_u8s8_scalar();

std::span<const Kernel<BitmapInt8Args>> bitmap_int8_kernels() {
  static const Kernel<BitmapInt8Args> table[] = {
#if defined(__x86_64__)
      bitmap_u8s8_avx512vbmi(), bitmap_u8s8_avx512vnni(), bitmap_u8s8_avxvnni(), bitmap_u8s8_avx2(),
#elif defined(__aarch64__)
      bitmap_u8s8_neondot(),
      bitmap_u8s8_neon(),
#endif
      bitmap_u8s8_scalar(),
  };
  return table;
}

}  // namespace sparsecore
