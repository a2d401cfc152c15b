// Times every enabled kernel of every table, one thread, on layers of BERT, LLaMA and ResNet-50.
//
//   sparsecore_benchmarks --benchmark_filter='spmm/.*avx2.*768' --benchmark_repetitions=5
//
// Rates count the non-zeros only: 2 * nnz * columns operations. `of_fma_peak` holds them against the float32
// multiply-add probe of the best enabled instruction set, run right before in the same process; the int8 operations
// are held against the same probe, so they may pass 1. What is timed: one call over the whole output, packing of the
// activations included; quantizing them is a line of its own.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

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

// --- Data ---

std::vector<float> random_floats(int64_t size) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> result(static_cast<size_t>(size));
  for (float& value : result) value = uniform(random);
  return result;
}

// Every entry, or column of block_rows neighbouring entries, is kept with the same probability.
template <class T>
struct Csr {
  std::vector<int32_t> row_ptr{0}, col_idx;
  std::vector<T> values;
  CsrView<T> view;

  Csr(int64_t N, int64_t K, double sparsity, int64_t block_rows = 1) {
    std::mt19937 random(2);
    std::bernoulli_distribution keep(1.0 - sparsity);
    std::uniform_int_distribution<int> value(-127, 127);
    std::vector<bool> kept(static_cast<size_t>(K));
    for (int64_t n = 0; n < N; ++n) {
      if (n % block_rows == 0) std::generate(kept.begin(), kept.end(), [&] { return keep(random); });
      for (int64_t k = 0; k < K; ++k) {
        if (!kept[static_cast<size_t>(k)]) continue;
        col_idx.push_back(static_cast<int32_t>(k));
        values.push_back(static_cast<T>(value(random)));
      }
      row_ptr.push_back(static_cast<int32_t>(values.size()));
    }
    view = {N, K, static_cast<int64_t>(values.size()), row_ptr.data(), col_idx.data(), values.data()};
  }
  double flops(int64_t columns) const { return 2.0 * double(view.nnz) * double(columns); }
};

// Columns of a panel are a multiple of taps.
struct Packing {
  int64_t taps = 1, block_rows = 1;
};

// A weight in the form that a kernel takes; rows: what the rows argument of run counts.
template <class View>
struct Packed;

template <>
struct Packed<CsrView<float>> {
  CsrView<float> view;
  int64_t rows;

  Packed(const Csr<float>& csr, Packing) : view(csr.view), rows(csr.view.rows) {}
};

template <>
struct Packed<BlockCsrView<float>> {
  BlockCsrView<float> view;
  int64_t rows;
  std::vector<int32_t> block_ptr, block_col;
  std::vector<float> values;

  Packed(const Csr<float>& csr, Packing packing) {
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.block_rows = packing.block_rows;
    rows = view.num_blocks();
    block_ptr.resize(static_cast<size_t>(rows) + 1);
    count_block_csr(csr.view, view.block_rows, {0, rows}, block_ptr.data());
    view.nnz = running_sum(block_ptr.data(), rows);
    block_col.resize(static_cast<size_t>(view.nnz));
    values.resize(static_cast<size_t>(view.nnz * view.block_rows));
    fill_block_csr(csr.view, view.block_rows, {0, rows}, block_ptr.data(), block_col.data(), values.data());
    view.row_ptr = block_ptr.data();
    view.col_idx = block_col.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

template <>
struct Packed<PanelView<float>> {
  PanelView<float> view;
  int64_t rows;
  std::vector<int32_t> run_ptr, entry_ptr;
  std::vector<uint8_t> run_row, run_length, panel_col;
  std::vector<float> values;

  // Blocks of 64 rows and panels of about 80 columns, the sizes that the Python package takes.
  Packed(const Csr<float>& csr, Packing packing) {
    constexpr int64_t kBlockRows = 64, kPanelCols = 80;
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.nnz = csr.view.nnz;
    view.block_rows = kBlockRows;
    view.panel_cols = std::max<int64_t>(kPanelCols / packing.taps, 1) * packing.taps;
    rows = view.num_blocks();
    run_ptr.resize(static_cast<size_t>(view.num_segments()) + 1);
    entry_ptr.resize(run_ptr.size());
    count_panel(csr.view, view.block_rows, view.panel_cols, {0, rows}, run_ptr.data(), entry_ptr.data());
    running_sum(entry_ptr.data(), view.num_segments());
    view.num_runs = running_sum(run_ptr.data(), view.num_segments());
    run_row.resize(static_cast<size_t>(view.num_runs));
    run_length.resize(run_row.size());
    panel_col.resize(static_cast<size_t>(view.nnz));
    values.resize(panel_col.size());
    fill_panel<float>(
        csr.view, view.block_rows, view.panel_cols, {0, rows},
        {run_ptr.data(), entry_ptr.data(), run_row.data(), run_length.data(), panel_col.data(), values.data()});
    view.run_ptr = run_ptr.data();
    view.entry_ptr = entry_ptr.data();
    view.run_row = run_row.data();
    view.run_length = run_length.data();
    view.panel_col = panel_col.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

template <>
struct Packed<BitmapView> {
  BitmapView view;
  int64_t rows;
  std::vector<int32_t> block_ptr;
  std::vector<uint16_t> masks;
  std::vector<float> values;

  Packed(const Csr<float>& csr, Packing) {
    view.rows = csr.view.rows;
    view.cols = csr.view.cols;
    view.nnz = csr.view.nnz;
    rows = view.num_blocks();
    block_ptr.resize(static_cast<size_t>(rows) + 1);
    masks.resize(static_cast<size_t>(rows * view.cols));
    values.resize(static_cast<size_t>(view.nnz + kBitmapSlack));
    fill_bitmap<float>(csr.view, {0, rows}, {block_ptr.data(), masks.data(), values.data()});
    view.block_ptr = block_ptr.data();
    view.masks = masks.data();
    view.values = values.data();
  }
  Packed(const Packed&) = delete;
};

// Int8 weights[N, K] in one segment, for the lanes and the table of `shape`; flops: of a row of activations.
template <class View>
struct PackedInt8;

template <>
struct PackedInt8<Int8View> {
  Int8View view;
  double flops;
  std::vector<int8_t> values;

  PackedInt8(Int8View shape, double, bool) : view(shape), flops(2.0 * double(shape.rows * shape.cols)) {
    values.assign(static_cast<size_t>(view.num_blocks() * view.block_bytes()), int8_t(3));
    view.values = values.data();
  }
};

template <>
struct PackedInt8<BitmapInt8View> {
  BitmapInt8View view;
  double flops;
  std::vector<uint8_t> masks;
  std::vector<int32_t> value_ptr{0};
  std::vector<int8_t> values;

  PackedInt8(BitmapInt8View shape, double sparsity, bool) : view(shape) {
    std::mt19937 random(2);
    std::bernoulli_distribution keep(1.0 - sparsity);
    int32_t nnz = 0;
    for (int64_t block = 0; block < view.num_blocks(); ++block) {
      for (int64_t byte = 0; byte < view.block_bytes() / 8; ++byte) {
        int mask = 0;
        for (int bit = 0; bit < 8; ++bit) mask |= keep(random) << bit;
        masks.push_back(static_cast<uint8_t>(mask));
        nnz += __builtin_popcount(static_cast<unsigned>(mask));
      }
      value_ptr.push_back(nnz);
    }
    values.assign(static_cast<size_t>(nnz + kReadBeyond), int8_t(3));
    flops = 2.0 * double(nnz);
    view.nnz = nnz;
    view.masks = masks.data();
    view.value_ptr = value_ptr.data();
    view.values = values.data();
  }
  PackedInt8(const PackedInt8&) = delete;
};

template <>
struct PackedInt8<LookupView> {
  LookupView view;
  double flops;
  std::vector<int32_t> entry_ptr, step_ptr;
  std::vector<uint16_t> entry_group;
  std::vector<uint8_t> entry_steps, slots;

  PackedInt8(LookupView shape, double sparsity, bool has_safe_pairs) : view(shape) {
    const Csr<int8_t> csr(shape.rows, shape.cols, sparsity);
    const Range blocks{0, view.num_blocks()};
    std::vector<int8_t> dense(static_cast<size_t>(shape.rows * shape.cols));
    unpack_csr(csr.view, {0, shape.rows}, dense.data());
    entry_ptr.resize(static_cast<size_t>(blocks.end) + 1);
    step_ptr.resize(entry_ptr.size());
    count_lookup(dense.data(), shape, has_safe_pairs, blocks, entry_ptr.data(), step_ptr.data());
    view.num_entries = running_sum(entry_ptr.data(), blocks.end);
    view.num_steps = running_sum(step_ptr.data(), blocks.end);
    entry_group.resize(static_cast<size_t>(view.num_entries));
    entry_steps.resize(entry_group.size());
    slots.resize(static_cast<size_t>(view.num_steps * 2 * view.quad_bytes()));
    fill_lookup(dense.data(), shape, has_safe_pairs, blocks,
                {entry_ptr.data(), step_ptr.data(), entry_group.data(), entry_steps.data(), slots.data()});
    flops = csr.flops(1);
    view.entry_ptr = entry_ptr.data();
    view.step_ptr = step_ptr.data();
    view.entry_group = entry_group.data();
    view.entry_steps = entry_steps.data();
    view.slots = slots.data();
  }
  PackedInt8(const PackedInt8&) = delete;
};

// Bytes of activations as the bindings lay them out.
struct QuantizedRows {
  int64_t ld;
  std::vector<uint8_t> bytes;
  std::vector<float> scale;

  QuantizedRows(int64_t M, int64_t K)
      : ld((K + 63) / 64 * 64), bytes(static_cast<size_t>(M * ld + kReadBeyond)), scale(static_cast<size_t>(M), 0.01f) {
    std::mt19937 random(3);
    std::uniform_int_distribution<int> value(0, 255);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(value(random));
  }
};

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
  const Packed<Weight> weight(csr, {.taps = taps, .block_rows = block_rows});
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

// The shape of the weight for the first packing that the kernel supports.
template <class Weight>
Weight shape_for(const Kernel<Int8ProductOf<Weight>>& kernel, Linear layer) {
  Int8ProductOf<Weight> args;
  args.weight.rows = layer.N;
  args.weight.cols = layer.K;
  for (const Int8Packing packing : {int8_packing(), {16, 64, false}, {16, 16, false}, {8, 16, false}, {4, 16, false}}) {
    args.weight.lanes = packing.lanes;
    if constexpr (requires { args.weight.table; }) args.weight.table = packing.table;
    if (kernel.supports(args)) break;
  }
  return args.weight;
}

template <class Weight>
void int8_product(benchmark::State& state, const Kernel<Int8ProductOf<Weight>>& kernel, Linear layer, double sparsity) {
  const bool has_safe_pairs = kernel.isa == Isa::kAvx2;  // its pmaddubsw saturates otherwise
  const PackedInt8<Weight> weight(shape_for(kernel, layer), sparsity, has_safe_pairs);
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
      if constexpr (!std::is_same_v<Weight, BitmapView>) {  // rows layout only
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
  add_spmm("spmm_bitmap", spmm_bitmap_kernels());
  add_conv2d("conv2d", conv2d_kernels());
  for (const int64_t block_rows : {4, 8}) {  // weights that were pruned in such blocks
    const std::string suffix = "_block" + std::to_string(block_rows);
    add_spmm("spmm" + suffix, spmm_block_kernels(), block_rows);
    add_conv2d("conv2d" + suffix, conv2d_block_kernels(), block_rows);
  }
  add_conv2d("conv2d_panel", conv2d_panel_kernels());
  for_enabled(gemm_int8_kernels(), [](const Kernel<GemmInt8Args>& row) {
    for (const Linear& layer : kLinears) {
      add(std::string("gemm_int8/") + row.name + "/" + layer.name(), int8_product<Int8View>, row, layer, 0.0);
    }
  });
  add_int8("bitmap_int8", bitmap_int8_kernels());
  add_int8("lookup_int8", lookup_int8_kernels());
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
