// The functions of device.h for a GPU. PTX is written out only where CUDA has no function for it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define SPARSECORE_DEVICE __device__ __forceinline__
// Threads of a block, and blocks that must fit on a multiprocessor: what registers a thread may take.
#define SPARSECORE_KERNEL(threads, blocks) static __global__ void __launch_bounds__(threads, blocks)
#define SPARSECORE_UNROLL _Pragma("unroll")

namespace sparsecore::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

SPARSECORE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SPARSECORE_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SPARSECORE_DEVICE int64_t block_x() { return blockIdx.x; }
SPARSECORE_DEVICE int64_t block_y() { return blockIdx.y; }
SPARSECORE_DEVICE int64_t grid_x() { return gridDim.x; }
SPARSECORE_DEVICE int64_t grid_y() { return gridDim.y; }

// The block's shared memory, whose size the launch gives; 128-byte aligned.
SPARSECORE_DEVICE uint8_t* shared_memory() {
  extern __shared__ __align__(128) uint8_t memory[];
  return memory;
}

SPARSECORE_DEVICE void sync_block() { __syncthreads(); }
SPARSECORE_DEVICE void sync_warp() { __syncwarp(); }                                                    // warp
SPARSECORE_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(kAllLanes, x, mask); }  // warp
SPARSECORE_DEVICE uint32_t shuffle(uint32_t x, int lane) { return __shfl_sync(kAllLanes, x, lane); }    // warp
SPARSECORE_DEVICE uint32_t shuffle_up(uint32_t x, int by) { return __shfl_up_sync(kAllLanes, x, by); }  // warp

SPARSECORE_DEVICE int count_bits(uint32_t x) { return __popc(x); }
SPARSECORE_DEVICE uint32_t sum_bytes(uint32_t x) { return __dp4a(x, 0x01010101u, 0u); }
// Byte i of the result is byte (selector >> 4 i) & 7 of the eight of low and high; bit 3 of each is 0. (The function of
// CUDA clears it once more.)
SPARSECORE_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}
// Bits s .. s + 31 of the 64 of low and high, s = shift % 32.
SPARSECORE_DEVICE uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}

SPARSECORE_DEVICE float bits_to_float(uint32_t x) { return __uint_as_float(x); }
SPARSECORE_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
SPARSECORE_DEVICE float half_to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
SPARSECORE_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
SPARSECORE_DEVICE uint16_t float_to_brain(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
// Two float16 at once: a - b.
SPARSECORE_DEVICE uint32_t subtract_half2(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Global memory that no thread writes while the kernel runs.
template <class T>
SPARSECORE_DEVICE T load(const T* from) {
  return __ldg(from);
}
SPARSECORE_DEVICE uint2 load_pair(const void* from) { return __ldg(static_cast<const uint2*>(from)); }  // aligned
SPARSECORE_DEVICE uint4 load_four(const void* from) { return __ldg(static_cast<const uint4*>(from)); }  // aligned

// Shared memory by addresses of 32 bits: with pointers the compiler computes in 64. Aligned to what is read.
SPARSECORE_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
SPARSECORE_DEVICE uint16_t read_shared_16(uint32_t address) {
  uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
  return x;
}
SPARSECORE_DEVICE uint32_t read_shared_32(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
SPARSECORE_DEVICE uint2 read_shared_64(uint32_t address) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
  return x;
}
SPARSECORE_DEVICE uint4 read_shared_128(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}

// 16 bytes from global to shared memory, both 16-byte aligned, behind the thread's back. Copies since the last
// commit_copies() form a group; wait_for_copies<n>() returns when all but the last n groups of this thread are there.
SPARSECORE_DEVICE void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
SPARSECORE_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
SPARSECORE_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Whether launches choose kernels with bulk copies (kBulk) or those without where this is compiled for: the others are
// left empty there.
#if !defined(__CUDA_ARCH__)
template <bool kBulk>
inline constexpr bool kIsChosen = true;
#elif __CUDA_ARCH__ >= 900
template <bool kBulk>
inline constexpr bool kIsChosen = kBulk;
#else
template <bool kBulk>
inline constexpr bool kIsChosen = !kBulk;
#endif

// One copy of many bytes by the copy engine of sm_90, and the barrier that says when it is there: one thread calls
// init_barrier() once; then per phase one thread calls expect_bytes() and copy_bulk(), and all who read wait with the
// phase's parity, 0 first.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SPARSECORE_SM_90(...) asm volatile(__VA_ARGS__ : "memory")
#else
#define SPARSECORE_SM_90(...) __trap()  // never chosen by a launch
#endif
SPARSECORE_DEVICE void init_barrier(uint64_t* barrier) {
  SPARSECORE_SM_90("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)));
}
// Makes init_barrier() known to the copy engine.
SPARSECORE_DEVICE void publish_barriers() { SPARSECORE_SM_90("fence.mbarrier_init.release.cluster;" ::); }
SPARSECORE_DEVICE void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  SPARSECORE_SM_90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes));
}
SPARSECORE_DEVICE void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  SPARSECORE_SM_90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       shared_address(to)),
                   "l"(from), "r"(bytes), "r"(shared_address(barrier)));
}
SPARSECORE_DEVICE void wait_barrier(uint64_t* barrier, uint32_t parity) {
  SPARSECORE_SM_90(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity));
}
#undef SPARSECORE_SM_90

// acc[16x8] += a[16x16] b[16x8] of a warp, in the registers of mma.m16n8k16: with g = lane / 4 and t = lane % 4,
//   a[0] row g, a[1] row g + 8, columns 2t 2t+1; a[2], a[3] the same rows, columns 2t+8 2t+9
//   b[0] rows 2t 2t+1, b[1] rows 2t+8 2t+9, column g
//   acc[0] acc[1] row g, columns 2t 2t+1; acc[2] acc[3] row g + 8
#define SPARSECORE_MULTIPLY_ADD(name, type)                                                        \
  SPARSECORE_DEVICE void name(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                            \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                      \
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                  \
  }
SPARSECORE_MULTIPLY_ADD(multiply_add_half, "f16")
SPARSECORE_MULTIPLY_ADD(multiply_add_brain, "bf16")
#undef SPARSECORE_MULTIPLY_ADD

// acc[16x8] += a[16x32] b[32x8] of int8, exactly, in the registers of mma.m16n8k32: with g = lane / 4 and t = lane % 4,
//   a[0] row g, a[1] row g + 8, columns 4t .. 4t+3; a[2], a[3] the same rows, columns 4t+16 .. 4t+19
//   b0 rows 4t .. 4t+3, b1 rows 4t+16 .. 4t+19, column g; acc as above
SPARSECORE_DEVICE void multiply_add_int8(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace sparsecore::cuda
