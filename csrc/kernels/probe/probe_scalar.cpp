#include "simd/scalar.h"
// The algorithm text needs a wrapper before it.
#include "kernels/probe/probe.h"

namespace sparsecore {

Probe probe_scalar() { return {"probe_scalar", Isa::kScalar, Simd::kLanes, probe_fma<Simd>, probe_read<Simd>}; }

}  // namespace sparsecore
