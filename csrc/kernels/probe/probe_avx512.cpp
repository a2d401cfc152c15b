#include <immintrin.h>

#include "simd/target.h"
#include "sparsecore/ops.h"

SPARSECORE_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "simd/avx512.h"
// The algorithm text needs a wrapper before it.
#include "kernels/probe/probe.h"

namespace sparsecore {

Probe probe_avx512() { return {"probe_avx512", Isa::kAvx512, Simd::kLanes, probe_fma<Simd>, probe_read<Simd>}; }

}  // namespace sparsecore
SPARSECORE_TARGET_END
