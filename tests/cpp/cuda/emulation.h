// Runs the text of CUDA kernels on the CPU: device.h includes this file where nvcc does not compile.
//
// Threads of a block are fibers that take turns in random order between the points where they wait for each other, so
// a missing barrier shows. Asynchronous copies are late: their bytes arrive when the copy is waited for. Shared memory
// is poisoned and flush against a guard page. The matrix product follows the register tables of the PTX manual.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define SPARSECORE_DEVICE inline
#define SPARSECORE_KERNEL(threads, blocks) inline void
#define SPARSECORE_UNROLL

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace sparsecore::cuda {

// --- what a fiber knows and can wait for (emulation.cpp) ---

struct Grid {
  int64_t x = 1, y = 1;
};
int thread_index();
int block_threads();
int64_t block_x();
int64_t block_y();
int64_t grid_x();
int64_t grid_y();
uint8_t* shared_memory();
void sync_block();

// Fails the test unless the pointer is a multiple of `bytes`: a GPU stops at misaligned vector loads.
void check_alignment(const void* pointer, uintptr_t bytes);

// Exchanges `bytes` bytes between the lanes of a warp: the returned array holds those of lane l at l * bytes, until the
// next exchange but one. All lanes must come with the same kind.
const void* exchange(const char* kind, const void* mine, int bytes);

void copy_async(void* to, const void* from);
void commit_copies();
void wait_for_copies_but(int groups);
template <int kGroups>
void wait_for_copies() {
  wait_for_copies_but(kGroups);
}

template <bool kBulk>
inline constexpr bool kIsChosen = true;
void init_barrier(uint64_t* barrier);
inline void publish_barriers() {}
void expect_bytes(uint64_t* barrier, uint32_t bytes);
void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier);
void wait_barrier(uint64_t* barrier, uint32_t parity);

// Runs kernel() for every thread of every block; blocks come in random order.
void run_grid(Grid grid, int threads, int64_t shared_bytes, uint32_t seed, const std::function<void()>& kernel);
// The same for one block of a grid that has too many for a test.
void run_one_block(Grid grid, Grid at, int threads, int64_t shared_bytes, uint32_t seed,
                   const std::function<void()>& kernel);

// --- the rest of device.h ---

inline void sync_warp() {
  const char nothing = 0;
  exchange("sync", &nothing, 1);
}
inline float shuffle_xor(float x, int mask) {
  return static_cast<const float*>(exchange("xor", &x, sizeof(x)))[thread_index() % 32 ^ mask];
}
inline uint32_t shuffle(uint32_t x, int lane) {
  return static_cast<const uint32_t*>(exchange("shuffle", &x, sizeof(x)))[lane & 31];
}
inline uint32_t shuffle_up(uint32_t x, int by) {
  const auto* all = static_cast<const uint32_t*>(exchange("up", &x, sizeof(x)));
  const int lane = thread_index() % 32;
  return all[lane >= by ? lane - by : lane];
}

inline int count_bits(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t sum_bytes(uint32_t x) { return (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24); }
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) result |= uint32_t(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t shift) {
  return uint32_t((uint64_t(high) << 32 | low) >> (shift & 31));
}

inline float bits_to_float(uint32_t x) {
  float result;
  std::memcpy(&result, &x, sizeof(x));
  return result;
}
inline uint32_t float_to_bits(float x) {
  uint32_t result;
  std::memcpy(&result, &x, sizeof(x));
  return result;
}
float half_to_float(uint16_t x);
uint16_t float_to_half(float x);
uint16_t float_to_brain(float x);
inline uint32_t subtract_half2(uint32_t a, uint32_t b) {
  const auto part = [&](int i) {
    return uint32_t(float_to_half(half_to_float(uint16_t(a >> i)) - half_to_float(uint16_t(b >> i)))) << i;
  };
  return part(0) | part(16);
}

inline uint32_t shared_address(const void* pointer) {
  return uint32_t(static_cast<const uint8_t*>(pointer) - shared_memory());
}
template <class T>
T read_shared(uint32_t address) {
  check_alignment(shared_memory() + address, sizeof(T));
  T result;
  std::memcpy(&result, shared_memory() + address, sizeof(T));
  return result;
}
inline uint16_t read_shared_16(uint32_t address) { return read_shared<uint16_t>(address); }
inline uint32_t read_shared_32(uint32_t address) { return read_shared<uint32_t>(address); }
inline uint2 read_shared_64(uint32_t address) { return read_shared<uint2>(address); }
inline uint4 read_shared_128(uint32_t address) { return read_shared<uint4>(address); }

template <class T>
T load(const T* from) {
  check_alignment(from, sizeof(T));
  return *from;
}
template <class T>
T load_aligned(const void* from) {
  check_alignment(from, sizeof(T));
  T result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}
inline uint2 load_pair(const void* from) { return load_aligned<uint2>(from); }
inline uint4 load_four(const void* from) { return load_aligned<uint4>(from); }

void multiply_add_half(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add_brain(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add_int8(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

}  // namespace sparsecore::cuda
