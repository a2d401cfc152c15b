// What a GPU can do, alone and without torch: the rates that decide which decoder can keep up. A program of its own:
//
//   nvcc -std=c++20 -O3 -arch=native -I csrc -I csrc/include csrc/cuda/probes/probes.cu -o probes
//
// Prints one line of JSON per probe. Operations are counted per lane; "per clock" is per multiprocessor at the clock
// that the clock64() counter shows.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/launch.h"
#include "cuda/spmm_fragment.h"

namespace sparsecore::cuda {
namespace {

constexpr int kThreads = 512, kRounds = 4096, kChains = 8;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "probes: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

struct Popcount {
  static constexpr const char* kName = "popcount";
  static SPARSECORE_DEVICE uint32_t step(uint32_t x, uint32_t salt, const uint32_t*) {
    return static_cast<uint32_t>(count_bits(x)) + salt;
  }
};
struct Permute {
  static constexpr const char* kName = "permute_bytes";
  static SPARSECORE_DEVICE uint32_t step(uint32_t x, uint32_t salt, const uint32_t*) {
    return permute_bytes(x, salt, x);
  }
};
struct Shuffle {
  static constexpr const char* kName = "shuffle";
  static SPARSECORE_DEVICE uint32_t step(uint32_t x, uint32_t, const uint32_t*) {
    return shuffle(x, static_cast<int>(x & 31));
  }
};
// 32-bit reads where no two lanes meet in a bank, and where lanes read anywhere.
struct SharedInOrder {
  static constexpr const char* kName = "shared_in_order";
  static SPARSECORE_DEVICE uint32_t step(uint32_t x, uint32_t, const uint32_t* memory) {
    return memory[(x & 0x3e0u) | (threadIdx.x & 31u)];
  }
};
struct SharedAnywhere {
  static constexpr const char* kName = "shared_anywhere";
  static SPARSECORE_DEVICE uint32_t step(uint32_t x, uint32_t, const uint32_t* memory) { return memory[x & 0x3ffu]; }
};

template <class Operation>
__global__ void __launch_bounds__(kThreads, 2) rate(uint32_t* out, long long* clocks, uint32_t salt) {
  __shared__ uint32_t memory[1024];
  for (unsigned i = threadIdx.x; i < 1024; i += kThreads) memory[i] = i * 2654435761u ^ salt;
  __syncthreads();
  uint32_t x[kChains];
  for (int c = 0; c < kChains; ++c) x[c] = threadIdx.x * 747796405u + static_cast<unsigned>(c) * salt;
  const long long start = clock64();
  for (int round = 0; round < kRounds; ++round) {
    SPARSECORE_UNROLL
    for (int c = 0; c < kChains; ++c) x[c] = Operation::step(x[c], salt, memory);
  }
  const long long stop = clock64();
  uint32_t all = 0;
  for (int c = 0; c < kChains; ++c) all ^= x[c];
  out[blockIdx.x * kThreads + threadIdx.x] = all;  // or the compiler leaves the loop out
  if (threadIdx.x == 0) clocks[blockIdx.x] = stop - start;
}

template <class Operation>
void probe_rate(int multiprocessors) {
  const int blocks = 2 * multiprocessors;
  uint32_t* out = nullptr;
  long long* clocks = nullptr;
  check(cudaMalloc(&out, sizeof(uint32_t) * static_cast<size_t>(blocks) * kThreads));
  check(cudaMalloc(&clocks, sizeof(long long) * static_cast<size_t>(blocks)));
  std::vector<long long> measured(static_cast<size_t>(blocks));
  for (int i = 0; i < 3; ++i) rate<Operation><<<blocks, kThreads>>>(out, clocks, 12345u);
  check(cudaGetLastError());
  check(cudaMemcpy(measured.data(), clocks, sizeof(long long) * measured.size(), cudaMemcpyDeviceToHost));
  std::sort(measured.begin(), measured.end());
  // Both blocks of a multiprocessor run side by side.
  const double per_clock = 2.0 * kThreads * kRounds * kChains / double(measured[measured.size() / 2]);
  std::printf("{\"probe\": \"%s\", \"per_clock\": %.2f}\n", Operation::kName, per_clock);
  check(cudaFree(out));
  check(cudaFree(clocks));
}

__global__ void read_all(const uint4* from, int64_t count, uint32_t* out) {
  uint32_t all = 0;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  SPARSECORE_UNROLL
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 four = __ldcs(from + i);
    all ^= four.x ^ four.y ^ four.z ^ four.w;
  }
  if (all == 0x12345678u) *out = all;
}

// The ring alone, and the ring with the decoder but without products: bytes and dense elements that it gets through.
template <class Values, bool kDecodes, bool kBulk>
__global__ void __launch_bounds__(kFragmentThreads, 2) read_tiles(FragmentArrays weight, uint32_t* out) {
  const int64_t num_tiles = int64_t(tiles_of(weight.rows)) * tiles_of(weight.cols);
  const int begin = static_cast<int>(num_tiles * block_x() / grid_x());
  const int end = static_cast<int>(num_tiles * (block_x() + 1) / grid_x());
  const int warps = block_threads() / kWarp;
  const FragmentShared layout{warps, 1, weight.stage_bytes};
  uint8_t* shared = shared_memory();
  const uint32_t selectors = Values::selector(static_cast<uint32_t>(thread_index()) % 16);
  TileRing<kBulk> ring(weight, shared + layout.ring_at(), reinterpret_cast<uint64_t*>(shared + layout.barriers_at()),
                       begin + thread_index() / kWarp, end, warps);
  uint32_t all = 0;
  for (int tile = begin + thread_index() / kWarp; tile < end; tile += warps) {
    const uint32_t bytes = ring.wait();
    if constexpr (kDecodes) {
      const WarpTile opened = open_tile<Values::kBits>(bytes);
      SPARSECORE_UNROLL
      for (int f = 0; f < 16; ++f) {
        uint32_t a[4];
        read_fragment<Values>(opened, f / 4, f % 4, selectors, a);
        all ^= a[0] + 3 * a[1] + 5 * a[2] + 7 * a[3];
        if (f % 4 == 3) sync_warp();
      }
    } else {
      all ^= read_shared_32(bytes + thread_index() % kWarp * 4);
    }
    ring.release();
  }
  ring.finish();
  if (all == 0x12345678u) *out = all;
}

template <class Function>
double seconds_of(Function launch) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    check(cudaEventRecord(start));
    launch();
    check(cudaEventRecord(stop));
    check(cudaEventSynchronize(stop));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, stop));
    times.push_back(milliseconds);
  }
  check(cudaGetLastError());
  std::sort(times.begin(), times.end());
  return double(times[times.size() / 2]) * 1e-3;
}

void probe_read(int multiprocessors) {
  const int64_t bytes = int64_t(2) << 30;
  uint8_t* memory = nullptr;
  uint32_t* out = nullptr;
  check(cudaMalloc(&memory, static_cast<size_t>(bytes)));
  check(cudaMalloc(&out, 4));
  check(cudaMemset(memory, 1, static_cast<size_t>(bytes)));
  const double seconds = seconds_of(
      [&] { read_all<<<8 * multiprocessors, 256>>>(reinterpret_cast<const uint4*>(memory), bytes / 16, out); });
  std::printf("{\"probe\": \"read\", \"gbps\": %.1f}\n", double(bytes) / seconds * 1e-9);
  check(cudaFree(memory));
  check(cudaFree(out));
}

// A weight of 8192 x 8192 whose bits are random; what the values are does not matter here.
template <class Values, bool kDecodes, bool kBulk>
void probe_tiles(int multiprocessors, double density) {
  constexpr int64_t kSize = 8192, kTiles = kSize / kFragmentTile * (kSize / kFragmentTile);
  std::vector<int32_t> tile_ptr{0};
  std::vector<uint32_t> masks(static_cast<size_t>(kTiles) * kFragmentMaskBytes / 4);
  uint64_t state = 1;
  const auto threshold = static_cast<uint64_t>(density * 4294967296.0);
  int most = 0;
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    int count = 0;
    for (int word = 0; word < kFragmentMaskBytes / 4; ++word) {
      uint32_t bits = 0;
      for (int i = 0; i < 32; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (state >> 32 < threshold) bits |= 1u << i;
      }
      masks[static_cast<size_t>(tile * (kFragmentMaskBytes / 4) + word)] = bits;
      count += __builtin_popcount(bits);
    }
    const int bytes = fragment_tile_bytes(Values::kBits, count);
    most = std::max(most, bytes);
    tile_ptr.push_back(tile_ptr.back() + bytes / kFragmentUnit);
  }
  const int64_t bytes = int64_t(tile_ptr.back()) * kFragmentUnit;
  std::vector<uint8_t> blob(static_cast<size_t>(bytes), 0);
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    const auto* from = reinterpret_cast<const uint8_t*>(masks.data()) + tile * kFragmentMaskBytes;
    std::copy_n(from, kFragmentMaskBytes, blob.data() + int64_t(tile_ptr[static_cast<size_t>(tile)]) * kFragmentUnit);
  }
  FragmentArrays weight;
  weight.rows = weight.cols = kSize;
  weight.value_bits = Values::kBits;
  weight.stage_bytes = most;
  weight.blob_bytes = bytes;
  int32_t* device_ptr = nullptr;
  uint8_t* device_blob = nullptr;
  uint32_t* out = nullptr;
  check(cudaMalloc(&device_ptr, tile_ptr.size() * 4));
  check(cudaMalloc(&device_blob, blob.size()));
  check(cudaMalloc(&out, 4));
  check(cudaMemcpy(device_ptr, tile_ptr.data(), tile_ptr.size() * 4, cudaMemcpyHostToDevice));
  check(cudaMemcpy(device_blob, blob.data(), blob.size(), cudaMemcpyHostToDevice));
  weight.tile_ptr = device_ptr;
  weight.blob = device_blob;
  const auto kernel = read_tiles<Values, kDecodes, kBulk>;
  const FragmentShared shared{kFragmentThreads / kWarp, 1, most};
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared.bytes()));
  const double seconds =
      seconds_of([&] { kernel<<<2 * multiprocessors, kFragmentThreads, shared.bytes()>>>(weight, out); });
  std::printf(
      "{\"probe\": \"%s\", \"value_bits\": %d, \"copy\": \"%s\", \"density\": %.2f, \"gbps\": %.1f, "
      "\"giga_elements_per_s\": %.1f}\n",
      kDecodes ? "decode" : "ring", Values::kBits, kBulk ? "bulk" : "cp.async", density, double(bytes) / seconds * 1e-9,
      double(kSize * kSize) / seconds * 1e-9);
  check(cudaFree(device_ptr));
  check(cudaFree(device_blob));
  check(cudaFree(out));
}

template <bool kBulk>
void probe_decoders(int multiprocessors) {
  for (const double density : {0.7, 0.5, 0.3, 0.2, 0.1}) {
    probe_tiles<Values16<Half>, false, kBulk>(multiprocessors, density);
    probe_tiles<Values16<Half>, true, kBulk>(multiprocessors, density);
    probe_tiles<Values8<Half>, true, kBulk>(multiprocessors, density);
    probe_tiles<Values4<Half>, true, kBulk>(multiprocessors, density);
  }
}

}  // namespace
}  // namespace sparsecore::cuda

int main() {
  using namespace sparsecore::cuda;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::fprintf(stderr, "probes: expected a GPU, found none\n");
    return 2;
  }
  const int multiprocessors = properties.multiProcessorCount;
  std::printf("{\"probe\": \"device\", \"name\": \"%s\", \"multiprocessors\": %d, \"l2_bytes\": %d}\n", properties.name,
              multiprocessors, properties.l2CacheSize);
  probe_read(multiprocessors);
  probe_rate<Popcount>(multiprocessors);
  probe_rate<Permute>(multiprocessors);
  probe_rate<Shuffle>(multiprocessors);
  probe_rate<SharedInOrder>(multiprocessors);
  probe_rate<SharedAnywhere>(multiprocessors);
  probe_decoders<false>(multiprocessors);
  if (properties.major >= 9) probe_decoders<true>(multiprocessors);
  return 0;
}
