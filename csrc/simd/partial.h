// The first lanes of a vector of 16-bit numbers or bytes, where the instruction set cannot mask them: through a buffer.
#pragma once

#include "simd/target.h"
#include "sparsecore/views.h"

namespace sparsecore {
namespace {

template <class S, class T>
SPARSECORE_INLINE typename S::F32 load_first(const T* p, int n) {
  T buffer[S::kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return S::load(buffer);
}

template <class S, class T>
SPARSECORE_INLINE void store_first(T* p, typename S::F32 a, int n) {
  T buffer[S::kLanes];
  S::store(buffer, a);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

template <class S>
SPARSECORE_INLINE void store_first_bytes(uint8_t* p, typename S::F32 a, int32_t shift, int n) {
  uint8_t buffer[S::kLanes];
  S::store_bytes(buffer, a, shift);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

}  // namespace
}  // namespace sparsecore
