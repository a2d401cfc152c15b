#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx2,fma,f16c")
#include "simd/avx2.h"
// The algorithm text needs a wrapper before it.
#include "kernels/probe/probe.h"

namespace sparsecore {

Probe probe_avx2() { return {"probe_avx2", Isa::kAvx2, Simd::kLanes, probe_fma<Simd>, probe_read<Simd>}; }

}  // namespace sparsecore
SPARSECORE_TARGET_END
