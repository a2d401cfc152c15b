// Times every enabled kernel of every table, one thread, on layers of BERT, LLaMA, ResNet-50 and mobile networks.
//
//   sparsecore_benchmarks --benchmark_filter='spmm/.*avx2.*768' --benchmark_repetitions=5
//
// Rates count the non-zeros only: 2 * nnz * columns operations. `of_fma_peak` holds them against the float32
// multiply-add probe of the best enabled instruction set, run right before in the same process; the int8 operations
// are held against the same probe, so they may pass 1. What is timed: one call over the whole output, packing of the
// activations included; quantizing them is a line of its own.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "data.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

// --- Rates ---

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double fma_peak_gflops() {
  const auto enabled = [](const Probe& row) { return isa_enabled(row.isa); };
  const Probe& probe = *std::find_if(probes().begin(), probes().end(), enabled);
  float sink = 0.0f;
  ProbeArgs args;
  args.repeats = 20'000;
  args.sink = &sink;
  double best_seconds = 1e9;
  for (int round = 0; round < 50; ++round) {  // a few ms; the best, since a peak is what nothing disturbs
    const auto begin = Clock::now();
    probe.fma(args);
    best_seconds = std::min(best_seconds, seconds_since(begin));
  }
  return double(args.repeats * kFmaProbeFlopsPerLane * probe.lanes) / best_seconds * 1e-9;
}

// Runs function as often as the benchmark wants; the rate, if there is a number of operations.
template <class Function>
void time_loop(benchmark::State& state, double flops, Function function) {
  const double peak = fma_peak_gflops();
  const auto begin = Clock::now();
  for (auto _ : state) {
    function();
    benchmark::ClobberMemory();
  }
  if (flops <= 0.0) return;
  const double gflops = flops * double(state.iterations()) / seconds_since(begin) * 1e-9;
  state.counters["GFLOP/s"] = gflops;
  state.counters["of_fma_peak"] = gflops / peak;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class Args>
void time_kernel(benchmark::State& state, const Kernel<Args>& kernel, const Args& args, int64_t rows, double flops) {
  if (!kernel.supports(args)) return state.SkipWithError("the kernel does not support this shape");
  const auto scratch_bytes = static_cast<size_t>(kernel.scratch_bytes(args));
  const std::unique_ptr<void, Free> scratch(std::aligned_alloc(64, (scratch_bytes + 64) / 64 * 64));
  const int64_t tiles = kernel.num_tiles(args);
  time_loop(state, flops, [&] { kernel.run(args, {0, rows}, {0, tiles}, scratch.get()); });
}

// --- One layer each ---

struct Linear {
  int64_t N, K, M;
  std::string name() const { return std::to_string(N) + "x" + std::to_string(K) + "," + std::to_string(M); }
};
constexpr Linear kLinears[] = {{768, 768, 128}, {3072, 768, 128}, {768, 3072, 128}, {4096, 4096, 16}, {4096, 4096, 1}};

struct Conv {
  int64_t channels, features, size, taps;
  std::string name() const {
    return std::to_string(channels) + "->" + std::to_string(features) + "@" + std::to_string(size);
  }
};
constexpr Conv kPointwise[] = {{64, 256, 56, 1}, {128, 512, 28, 1}, {256, 1024, 14, 1}, {512, 2048, 7, 1}};
constexpr Conv kSpatial[] = {{64, 64, 56, 3}, {128, 128, 28, 3}, {256, 256, 14, 3}, {512, 512, 7, 3}};
constexpr double kSparsities[] = {0.7, 0.9, 0.95};

template <class Weight>
void spmm_rows(benchmark::State& state, const Kernel<SpmmOf<Weight>>& kernel, Linear layer, double sparsity,
               int64_t block_rows) {
  const Csr<float> csr(layer.N, layer.K, sparsity, block_rows);
  const Packed<Weight> weight(csr, {.block_rows = block_rows});
  const std::vector<float> x = random_floats(layer.M * layer.K);
  std::vector<float> y(static_cast<size_t>(layer.M * layer.N));
  SpmmOf<Weight> args;
  args.weight = weight.view;
  args.columns = layer.M;
  args.x = x.data();
  args.ldx = layer.K;
  args.y = y.data();
  args.ldy = layer.N;
  time_kernel(state, kernel, args, weight.rows, csr.flops(layer.M));
}

// All weights count as work, zeros too. Any bits take the same time.
void spmm_planes(benchmark::State& state, const Kernel<SpmmPlanesArgs>& kernel, Linear layer, int64_t planes) {
  SpmmPlanesArgs args;
  args.weight.rows = layer.N;
  args.weight.cols = layer.K;
  args.weight.planes = planes;
  const int64_t blocks = args.weight.num_blocks(), row_words = args.weight.num_words() * planes * kPlaneBlockRows;
  const std::vector<float> x = random_floats(layer.M * layer.K), bits = random_floats(blocks * row_words);
  const std::vector<float> scale(static_cast<size_t>(planes * blocks * kPlaneBlockRows), 0.5f);
  std::vector<uint32_t> words(bits.size());
  for (size_t i = 0; i < words.size(); ++i) words[i] = std::bit_cast<uint32_t>(bits[i]) * 2654435761u;
  std::vector<float> y(static_cast<size_t>(layer.M * layer.N));
  args.weight.words = words.data();
  args.weight.scale = scale.data();
  args.columns = layer.M;
  args.x = x.data();
  args.ldx = layer.K;
  args.y = y.data();
  args.ldy = layer.N;
  time_kernel(state, kernel, args, blocks, 2.0 * double(layer.N * layer.K * layer.M));
}

template <class Weight>
void spmm_columns(benchmark::State& state, const Kernel<SpmmOf<Weight>>& kernel, Conv layer, double sparsity,
                  int64_t block_rows) {
  const int64_t P = layer.size * layer.size;
  const Csr<float> csr(layer.features, layer.channels, sparsity, block_rows);
  const Packed<Weight> weight(csr, {.block_rows = block_rows});
  const std::vector<float> x = random_floats(layer.channels * P);
  std::vector<float> y(static_cast<size_t>(layer.features * P));
  SpmmOf<Weight> args;
  args.weight = weight.view;
  args.layout = Layout::kColumns;
  args.columns = args.ldx = args.ldy = P;
  args.x = x.data();
  args.y = y.data();
  time_kernel(state, kernel, args, weight.rows, csr.flops(P));
}

template <class Weight>
void conv2d(benchmark::State& state, const Kernel<Conv2dOf<Weight>>& kernel, Conv layer, int64_t stride,
            double sparsity, int64_t block_rows) {
  const int64_t taps = layer.taps * layer.taps;
  const Csr<float> csr(layer.features, layer.channels * taps, sparsity, block_rows);
  const Packed<Weight> weight(csr, {.taps = layer.taps, .block_rows = block_rows});
  const std::vector<float> x = random_floats(layer.channels * layer.size * layer.size);
  Conv2dOf<Weight> args;
  args.weight = weight.view;
  args.batch = 1;
  args.channels = layer.channels;
  args.height = args.width = layer.size;
  args.kernel_h = args.kernel_w = layer.taps;
  args.padding_h = args.padding_w = layer.taps / 2;
  args.stride_h = args.stride_w = stride;
  args.out_height = args.out_width = (layer.size + 2 * args.padding_h - layer.taps) / stride + 1;
  std::vector<float> y(static_cast<size_t>(layer.features * args.out_height * args.out_width));
  args.x = x.data();
  args.y = y.data();
  time_kernel(state, kernel, args, weight.rows, csr.flops(args.out_height * args.out_width));
}

struct Depthwise {
  int64_t channels, size, taps, stride;
  std::string name() const {
    return std::to_string(channels) + "@" + std::to_string(size) + "/" + std::to_string(taps) + "x" +
           std::to_string(taps) + (stride > 1 ? "/stride" + std::to_string(stride) : "");
  }
};
constexpr Depthwise kDepthwise[] = {{32, 112, 3, 1}, {128, 56, 3, 1}, {128, 56, 3, 2}, {512, 14, 3, 1},
                                    {1024, 7, 3, 1}, {672, 14, 5, 1}, {96, 56, 7, 1}};

void depthwise(benchmark::State& state, const Kernel<DepthwiseArgs>& kernel, Depthwise layer) {
  const std::vector<float> x = random_floats(layer.channels * layer.size * layer.size);
  const std::vector<float> weight = random_floats(layer.channels * layer.taps * layer.taps);
  DepthwiseArgs args;
  args.batch = 1;
  args.channels = layer.channels;
  args.height = args.width = layer.size;
  args.kernel_h = args.kernel_w = layer.taps;
  args.padding_h = args.padding_w = layer.taps / 2;
  args.stride_h = args.stride_w = layer.stride;
  args.out_height = args.out_width = (layer.size + 2 * args.padding_h - layer.taps) / layer.stride + 1;
  std::vector<float> y(static_cast<size_t>(layer.channels * args.out_height * args.out_width));
  args.weight = weight.data();
  args.x = x.data();
  args.y = y.data();
  time_kernel(state, kernel, args, layer.channels, 2.0 * double(y.size()) * double(layer.taps * layer.taps));
}

// The shape of the weight for the first packing that the kernel supports.
template <class Weight>
Weight shape_for(const Kernel<Int8ProductOf<Weight>>& kernel, Linear layer) {
  Int8ProductOf<Weight> args;
  args.weight.rows = layer.N;
  args.weight.cols = layer.K;
  for (const Int8Packing packing : {int8_packing(layer.M <= kFewPositions),
                                    {16, 64, false},
                                    {16, 256, false},
                                    {16, 16, false},
                                    {8, 16, true},
                                    {4, 16, false}}) {
    args.weight.lanes = packing.lanes;
    if constexpr (requires { args.weight.table; }) {
      args.weight.table = packing.table;
    }
    if constexpr (requires { args.weight.has_safe_pairs; }) args.weight.has_safe_pairs = packing.has_safe_pairs;
    if constexpr (requires { args.weight.group_cols; }) args.weight.group_cols = 256;
    if (kernel.supports(args)) break;
  }
  return args.weight;
}

template <class Weight>
void int8_product(benchmark::State& state, const Kernel<Int8ProductOf<Weight>>& kernel, Linear layer, double sparsity) {
  const PackedInt8<Weight> weight(shape_for(kernel, layer), sparsity);
  const QuantizedRows x(layer.M, layer.K);
  const std::vector<float> scale(static_cast<size_t>(layer.N), 0.01f);
  const std::vector<int32_t> sum(static_cast<size_t>(layer.N), 1);
  std::vector<float> y(static_cast<size_t>(layer.M * layer.N));
  const int64_t start = 0;
  Int8ProductOf<Weight> args;
  args.weight = weight.view;
  args.weight_scale = scale.data();
  args.weight_sum = sum.data();
  args.x.x = x.bytes.data();
  args.x.images = layer.M;
  args.x.image_stride = x.ld;
  args.x.segment_offset = &start;
  args.x.scale = x.scale.data();
  args.y = y.data();
  args.ldy = layer.N;
  time_kernel(state, kernel, args, weight.view.num_blocks(), weight.flops * double(layer.M));
}

void quantize(benchmark::State& state, const Kernel<QuantizeArgs>& kernel, Linear layer) {
  const std::vector<float> x = random_floats(layer.M * layer.K);
  QuantizedRows out(layer.M, layer.K);
  QuantizeArgs args;
  args.x = x.data();
  args.images = layer.M;
  args.channels = layer.K;
  args.out = out.bytes.data();
  args.ld_out = out.ld;
  args.scale = out.scale.data();
  time_kernel(state, kernel, args, 1, 0.0);
  state.SetBytesProcessed(state.iterations() * layer.M * layer.K * int64_t(sizeof(float) + sizeof(uint8_t)));
}

// A layer of ResNet-50: windows of `taps`, stride 2 from 112 pixels, or all pixels of a 7 x 7 map.
void pool2d(benchmark::State& state, const Kernel<Pool2dArgs>& kernel, PoolMode mode, int64_t channels, int64_t size,
            int64_t taps) {
  const std::vector<float> x = random_floats(channels * size * size);
  Pool2dArgs args;
  args.mode = mode;
  args.batch = 1;
  args.channels = channels;
  args.height = args.width = size;
  args.kernel_h = args.kernel_w = taps;
  args.stride_h = args.stride_w = 2;
  args.padding_h = args.padding_w = taps == 3 ? 1 : 0;
  args.out_height = args.out_width = (size + 2 * args.padding_h - taps) / 2 + 1;
  std::vector<float> y(static_cast<size_t>(channels * args.out_height * args.out_width));
  args.x = x.data();
  args.y = y.data();
  time_kernel(state, kernel, args, channels, 0.0);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>((x.size() + y.size()) * sizeof(float)));
}

void scale_shift(benchmark::State& state, const Kernel<ScaleShiftArgs>& kernel, Activation activation) {
  constexpr int64_t kChannels = 256, kPixels = 56 * 56;
  const std::vector<float> x = random_floats(kChannels * kPixels), scale = random_floats(kChannels);
  std::vector<float> y(x.size());
  ScaleShiftArgs args;
  args.batch = 1;
  args.channels = kChannels;
  args.columns = kPixels;
  args.x = x.data();
  args.y = y.data();
  args.scale = scale.data();
  args.epilogue = {scale.data(), activation};
  time_kernel(state, kernel, args, kChannels, 0.0);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(2 * x.size() * sizeof(float)));
}

void fma_probe(benchmark::State& state, const Probe& probe) {
  float sink = 0.0f;
  ProbeArgs args;
  args.repeats = 20'000;
  args.sink = &sink;
  time_loop(state, double(args.repeats * kFmaProbeFlopsPerLane * probe.lanes), [&] { probe.fma(args); });
}

// --- Registration: op/kernel/layer/sparsity ---

template <class Row, class Function>
void for_enabled(std::span<const Row> table, Function function) {
  for (const Row& row : table) {
    if (isa_enabled(row.isa)) function(row);
  }
}

template <class Function, class... Arguments>
void add(const std::string& name, Function function, Arguments... arguments) {
  benchmark::RegisterBenchmark(name.c_str(), function, arguments...)->Unit(benchmark::kMicrosecond)->UseRealTime();
}

template <class Function>
void for_sparsities(Function function) {
  for (const double sparsity : kSparsities) {
    function(sparsity, std::to_string(static_cast<int>(100.0 * sparsity + 0.5)) + "%");
  }
}

template <class Weight>
void add_spmm(const std::string& op, std::span<const Kernel<SpmmOf<Weight>>> table, int64_t block_rows = 1) {
  for_enabled(table, [&](const auto& row) {
    const std::string prefix = op + "/" + row.name + "/";
    for_sparsities([&](double sparsity, const std::string& suffix) {
      for (const Linear& layer : kLinears) {
        add(prefix + layer.name() + "/" + suffix, spmm_rows<Weight>, row, layer, sparsity, block_rows);
      }
      if constexpr (!std::is_same_v<Weight, BitmapView> && !std::is_same_v<Weight, CodebookView>) {  // have rows only
        for (const Conv& layer : kPointwise) {
          add(prefix + layer.name() + "/" + suffix, spmm_columns<Weight>, row, layer, sparsity, block_rows);
        }
      }
    });
  });
}

template <class Weight>
void add_conv2d(const std::string& op, std::span<const Kernel<Conv2dOf<Weight>>> table, int64_t block_rows = 1) {
  for_enabled(table, [&](const auto& row) {
    const std::string prefix = op + "/" + row.name + "/";
    for_sparsities([&](double sparsity, const std::string& suffix) {
      for (const Conv& layer : kSpatial)
        add(prefix + layer.name() + "/" + suffix, conv2d<Weight>, row, layer, 1, sparsity, block_rows);
      const Conv& strided = kSpatial[1];
      add(prefix + strided.name() + "/stride2/" + suffix, conv2d<Weight>, row, strided, 2, sparsity, block_rows);
    });
  });
}

template <class Weight>
void add_int8(const std::string& op, std::span<const Kernel<Int8ProductOf<Weight>>> table) {
  for_enabled(table, [&](const auto& row) {
    for_sparsities([&](double sparsity, const std::string& suffix) {
      for (const Linear& layer : kLinears) {
        add(op + "/" + row.name + "/" + layer.name() + "/" + suffix, int8_product<Weight>, row, layer, sparsity);
      }
    });
  });
}

void add_all() {
  for_enabled(probes(), [](const Probe& row) { add(std::string("probe/") + row.name, fma_probe, row); });
  add_spmm("spmm", spmm_kernels());
  add_spmm("spmm_panel", spmm_panel_kernels());
  add_spmm("spmm_jit", spmm_jit_kernels());
  add_spmm("spmm_bitmap", spmm_bitmap_kernels());
  add_spmm("spmm_codebook", spmm_codebook_kernels());
  for_enabled(spmm_planes_kernels(), [](const auto& row) {
    for (const Linear& layer : kLinears) {
      for (const int64_t planes : {1, 2}) {
        const std::string suffix = planes == 1 ? "/binary" : "/ternary";
        add("spmm_planes/" + std::string(row.name) + "/" + layer.name() + suffix, spmm_planes, row, layer, planes);
      }
    }
  });
  add_conv2d("conv2d", conv2d_kernels());
  for (const int64_t block_rows : {4, 8}) {  // weights that were pruned in such blocks
    const std::string suffix = "_block" + std::to_string(block_rows);
    add_spmm("spmm" + suffix, spmm_block_kernels(), block_rows);
    add_conv2d("conv2d" + suffix, conv2d_block_kernels(), block_rows);
  }
  add_conv2d("conv2d_panel", conv2d_panel_kernels());
  add_conv2d("conv2d_jit", conv2d_jit_kernels());
  for_enabled(depthwise_kernels(), [](const Kernel<DepthwiseArgs>& row) {
    for (const Depthwise& layer : kDepthwise)
      add(std::string("depthwise/") + row.name + "/" + layer.name(), depthwise, row, layer);
  });
  for_enabled(gemm_int8_kernels(), [](const Kernel<GemmInt8Args>& row) {
    for (const Linear& layer : kLinears) {
      add(std::string("gemm_int8/") + row.name + "/" + layer.name(), int8_product<Int8View>, row, layer, 0.0);
    }
  });
  add_int8("bitmap_int8", bitmap_int8_kernels());
  add_int8("lookup_int8", lookup_int8_kernels());
  add_int8("lookup_int4", lookup_int4_kernels());
  for_enabled(pool2d_kernels(), [](const Kernel<Pool2dArgs>& row) {
    const std::string prefix = std::string("pool2d/") + row.name;
    add(prefix + "/max3x3/64@112", pool2d, row, PoolMode::kMax, 64, 112, 3);
    add(prefix + "/max2x2/64@112", pool2d, row, PoolMode::kMax, 64, 112, 2);
    add(prefix + "/avg2x2/64@112", pool2d, row, PoolMode::kAverage, 64, 112, 2);
    add(prefix + "/global/2048@7", pool2d, row, PoolMode::kAverage, 2048, 7, 7);
  });
  for_enabled(scale_shift_kernels(), [](const Kernel<ScaleShiftArgs>& row) {
    const std::string prefix = std::string("scale_shift/") + row.name + "/256@56/";
    add(prefix + "relu", scale_shift, row, Activation::kRelu);
    add(prefix + "silu", scale_shift, row, Activation::kSilu);
  });
  for_enabled(quantize_kernels(), [](const Kernel<QuantizeArgs>& row) {
    for (const Linear& layer : kLinears)
      add(std::string("quantize/") + row.name + "/" + layer.name(), quantize, row, layer);
  });
}

}  // namespace
}  // namespace sparsecore

int main(int argc, char** argv) {
  benchmark::AddCustomContext("cpu", sparsecore::cpu_name());
  benchmark::AddCustomContext("isa", sparsecore::isa_name(sparsecore::isa_in_use()));
  benchmark::AddCustomContext("threads", "1");
  sparsecore::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
