// The table of probes. Best first, scalar last.
#include "sparsecore/ops.h"

namespace sparsecore {

Probe probe_avx512();
Probe probe_avx2();
Probe probe_neon();
Probe probe_scalar();

std::span<const Probe> probes() {
  static const Probe table[] = {
#if defined(__x86_64__)
      probe_avx512(),
      probe_avx2(),
#elif defined(__aarch64__)
      probe_neon(),
#endif
      probe_scalar(),
  };
  return table;
}

}  // namespace sparsecore
