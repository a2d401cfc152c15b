// sparsecore._C: packing, kernels and CPU features for numpy. No torch: kernels can be written and measured without.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparsecore/ops.h"
#include "sparsecore/pack.h"

namespace py = pybind11;

namespace sparsecore::python {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void check(bool condition, const std::string& text) {
  if (!condition) throw py::value_error(text);
}

py::list kernels() {
  py::list list;
  for (const KernelInfo& info : all_kernels()) {
    py::dict row;
    row["op"] = info.op;
    row["name"] = info.name;
    row["isa"] = isa_name(info.isa);
    row["available"] = isa_enabled(info.isa);
    list.append(row);
  }
  return list;
}

py::dict build_info() {
  py::dict info;
  info["version"] = SPARSECORE_VERSION;
  info["compiler"] = std::string(SPARSECORE_COMPILER);
  info["cuda"] = static_cast<bool>(SPARSECORE_CUDA);
  return info;
}

// Rows of a block, columns of a table, and whether pairs of values must be safe.
py::tuple packing_of_int8(bool few_positions) {
  const Int8Packing packing = int8_packing(few_positions);
  return py::make_tuple(packing.lanes, packing.table, packing.has_safe_pairs);
}

const Probe& best_probe() {
  for (const Probe& probe : probes()) {
    if (isa_enabled(probe.isa)) return probe;
  }
  return probes().back();
}

// Best rate over rounds of `work` units each: a peak is what the hardware does when nothing disturbs it.
template <class Round>
double best_rate(double seconds, double work, Round round) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 0.0;
  do {
    const auto begin = Clock::now();
    round();
    const std::chrono::duration<double> time = Clock::now() - begin;
    best = std::max(best, work / time.count());
  } while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
  return best;
}

double probe_fma_gflops(double seconds) {
  check(seconds > 0.0 && seconds <= 60.0, "expected seconds in (0, 60]");
  const py::gil_scoped_release release;
  const Probe& probe = best_probe();
  float sink = 0.0f;
  ProbeArgs args;
  args.repeats = 200'000;
  args.sink = &sink;
  const double flops = double(args.repeats) * double(kFmaProbeFlopsPerLane * probe.lanes);
  return best_rate(seconds, flops, [&] { probe.fma(args); }) * 1e-9;
}

double probe_read_gbps(int64_t bytes, double seconds) {
  check(seconds > 0.0 && seconds <= 60.0, "expected seconds in (0, 60]");
  check(bytes >= 4096 && bytes <= (int64_t(1) << 32), "expected bytes in [4096, 2^32]");
  const py::gil_scoped_release release;
  const int64_t floats = bytes / 4 / 64 * 64;
  const std::vector<float> data(static_cast<size_t>(floats), 1.0f);
  const Probe& probe = best_probe();
  float sink = 0.0f;
  ProbeArgs args;
  args.data = data.data();
  args.repeats = std::max<int64_t>(1, (int64_t(1) << 24) / floats);
  args.sink = &sink;
  const double total = double(args.repeats) * double(floats) * 4.0;
  return best_rate(seconds, total, [&] { probe.read(args, {0, floats}); }) * 1e-9;
}

py::tuple pack_csr(const Array<float>& weight, const std::optional<Array<bool>>& mask) {
  check(weight.ndim() == 2, "expected a 2-D float32 weight [N, K]");
  const int64_t N = weight.shape(0), K = weight.shape(1);
  check(!mask || (mask->ndim() == 2 && mask->shape(0) == N && mask->shape(1) == K),
        "expected a bool mask of the shape of the weight");
  const bool* kept = mask ? mask->data() : nullptr;
  std::vector<int64_t> counts(static_cast<size_t>(N));
  count_kept<float>(weight.data(), kept, K, {0, N}, counts.data());
  const int64_t nnz = std::accumulate(counts.begin(), counts.end(), int64_t(0));
  check(nnz < (int64_t(1) << 31), "expected fewer than 2^31 kept entries");
  Array<int32_t> row_ptr(N + 1), col_idx(nnz);
  Array<float> values(nnz);
  int32_t* ends = row_ptr.mutable_data();
  ends[0] = 0;
  for (int64_t n = 0; n < N; ++n) ends[n + 1] = ends[n] + static_cast<int32_t>(counts[static_cast<size_t>(n)]);
  fill_csr<float>(weight.data(), kept, K, {0, N}, ends, col_idx.mutable_data(), values.mutable_data());
  return py::make_tuple(row_ptr, col_idx, values);
}

CsrView<float> checked_view(const Array<int32_t>& row_ptr, const Array<int32_t>& col_idx, const Array<float>& values,
                            int64_t cols) {
  check(row_ptr.ndim() == 1 && row_ptr.size() >= 1, "expected row_ptr int32 [N + 1]");
  check(col_idx.ndim() == 1 && values.ndim() == 1 && col_idx.size() == values.size(),
        "expected col_idx and values of one length");
  check(cols >= 0 && cols < (int64_t(1) << 31), "expected K in [0, 2^31)");
  const CsrView<float> view{row_ptr.size() - 1, cols, values.size(), row_ptr.data(), col_idx.data(), values.data()};
  const char* text = validate_csr(cols, view.nnz, view.row_ptr, view.col_idx, {0, view.rows});
  check(text == nullptr, std::string("invalid CSR weight: ") + (text != nullptr ? text : ""));
  return view;
}

Array<float> unpack_csr(const Array<int32_t>& row_ptr, const Array<int32_t>& col_idx, const Array<float>& values,
                        int64_t cols) {
  const CsrView<float> view = checked_view(row_ptr, col_idx, values, cols);
  Array<float> dense({view.rows, cols});
  sparsecore::unpack_csr<float>(view, {0, view.rows}, dense.mutable_data());
  return dense;
}

// y[M, N] = x[M, K] @ weight[N, K]^T on the calling thread.
Array<float> spmm_csr(const Array<float>& x, const Array<int32_t>& row_ptr, const Array<int32_t>& col_idx,
                      const Array<float>& values, const std::string& kernel) {
  check(x.ndim() == 2, "expected x float32 [M, K]");
  SpmmArgs args;
  args.weight = checked_view(row_ptr, col_idx, values, x.shape(1));
  args.columns = x.shape(0);
  args.ldx = args.weight.cols;
  args.ldy = args.weight.rows;
  Array<float> y({args.columns, args.weight.rows});
  args.x = x.data();
  args.y = y.mutable_data();
  const Kernel<SpmmArgs>* row =
      kernel.empty() ? &select_kernel(spmm_kernels(), args) : find_kernel(spmm_kernels(), kernel, args);
  check(row != nullptr, "expected a kernel of this CPU from kernels(), got '" + kernel + "'");
  const py::gil_scoped_release release;
  const size_t bytes = (static_cast<size_t>(row->scratch_bytes(args)) + 63) / 64 * 64;
  const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);
  row->run(args, {0, args.weight.rows}, {0, row->num_tiles(args)}, scratch.get());
  return y;
}

}  // namespace
}  // namespace sparsecore::python

PYBIND11_MODULE(_C, m) {
  using namespace sparsecore::python;
  m.doc() = "Kernels, packing and CPU features of libsparsecore for numpy.";
  sparsecore::isa_in_use();  // a wrong SPARSECORE_ISA is reported by the import, not by the first layer that runs
  m.def("kernels", &kernels);
  m.def("int8_packing", &packing_of_int8, py::arg("few_positions") = false);
  m.def("isa", [] { return sparsecore::isa_name(sparsecore::isa_in_use()); });
  m.def("isa_detected", [] { return sparsecore::isa_name(sparsecore::isa_detected()); });
  m.def("cpu_name", &sparsecore::cpu_name);
  m.def("build_info", &build_info);
  m.def("probe_fma_gflops", &probe_fma_gflops, py::arg("seconds"));
  m.def("probe_read_gbps", &probe_read_gbps, py::arg("bytes"), py::arg("seconds"));
  m.def("pack_csr", &pack_csr, py::arg("weight"), py::arg("mask") = py::none());
  m.def("unpack_csr", &unpack_csr, py::arg("row_ptr"), py::arg("col_idx"), py::arg("values"), py::arg("cols"));
  m.def("spmm_csr", &spmm_csr, py::arg("x"), py::arg("row_ptr"), py::arg("col_idx"), py::arg("values"),
        py::arg("kernel") = "");
}
