// For layouts that both the CPU and a GPU compute with.
#pragma once

#if defined(__CUDACC__)
#define SPARSECORE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPARSECORE_HOST_DEVICE inline
#endif
