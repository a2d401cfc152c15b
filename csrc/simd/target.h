// Opening an instruction set inside one source file: SPARSECORE_TARGET_BEGIN("avx2,fma,f16c") ...
// SPARSECORE_TARGET_END.
//
// Everything between must be in an anonymous namespace and use no std template: an inline function compiled for
// a newer CPU must never be the copy that the linker keeps for everyone.
#pragma once

#define SPARSECORE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SPARSECORE_TARGET_BEGIN(features) \
  SPARSECORE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SPARSECORE_TARGET_END SPARSECORE_PRAGMA(clang attribute pop)
#else
#define SPARSECORE_TARGET_BEGIN(features) SPARSECORE_PRAGMA(GCC push_options) SPARSECORE_PRAGMA(GCC target(features))
#define SPARSECORE_TARGET_END SPARSECORE_PRAGMA(GCC pop_options)
#endif

#define SPARSECORE_INLINE inline __attribute__((always_inline))

#define SPARSECORE_LAMBDA_INLINE __attribute__((always_inline))

// Full unrolling, so that arrays of vectors live in registers.
#if defined(__clang__)
#define SPARSECORE_UNROLL _Pragma("unroll")
#else
#define SPARSECORE_UNROLL _Pragma("GCC unroll 32")
#endif
