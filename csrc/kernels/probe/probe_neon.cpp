#include "simd/neon.h"
// The algorithm text needs a wrapper before it.
#include "kernels/probe/probe.h"

namespace sparsecore {

Probe probe_neon() { return {"probe_neon", Isa::kNeon, Simd::kLanes, probe_fma<Simd>, probe_read<Simd>}; }

}  // namespace sparsecore
