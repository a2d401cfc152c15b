// Probes: what this core can do at most, measured in the same process as the kernels that are held against it.
#pragma once

#include "simd/target.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// Adds onto the accumulator, as the kernels do: NEON has no other form, and no chain has a fixed point to fold.
template <class S>
void probe_fma(const ProbeArgs& args) {
  constexpr int kChains = kFmaProbeFlopsPerLane / 2;  // more than latency x units = 8 keeps both units busy
  typename S::F32 acc[kChains];
  SPARSECORE_UNROLL
  for (int j = 0; j < kChains; ++j) acc[j] = S::set1(float(j));
  const auto a = S::set1(0.999f), b = S::set1(0.001f);
  for (int64_t i = 0; i < args.repeats; ++i) {
    SPARSECORE_UNROLL
    for (int j = 0; j < kChains; ++j) acc[j] = S::fma(a, b, acc[j]);
  }
  float total = 0.0f;
  SPARSECORE_UNROLL
  for (int j = 0; j < kChains; ++j) total += S::reduce_add(acc[j]);
  *args.sink = total;
}

template <class S>
void probe_read(const ProbeArgs& args, Range floats) {
  constexpr int kChains = 8;
  typename S::F32 acc[kChains];
  SPARSECORE_UNROLL
  for (int j = 0; j < kChains; ++j) acc[j] = S::zero();
  for (int64_t r = 0; r < args.repeats; ++r) {
    int64_t i = floats.begin;
    for (; i + kChains * S::kLanes <= floats.end; i += kChains * S::kLanes) {
      SPARSECORE_UNROLL
      for (int j = 0; j < kChains; ++j) acc[j] = S::add(acc[j], S::load(args.data + i + j * S::kLanes));
    }
    for (; i < floats.end; i += S::kLanes) acc[0] = S::add(acc[0], S::load(args.data + i));
  }
  float total = 0.0f;
  SPARSECORE_UNROLL
  for (int j = 0; j < kChains; ++j) total += S::reduce_add(acc[j]);
  *args.sink = total;
}

}  // namespace
}  // namespace sparsecore
