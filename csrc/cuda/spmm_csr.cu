#include "cuda/spmm_csr.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {

const char* spmm_csr(const CsrArrays& weight, Layout layout, Dtype dtype, const void* x, int64_t batch, int64_t columns,
                     const SpmmOutput& out, Stream stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  with_number(dtype, [&](auto number) {
    with_number(weight.dtype, [&](auto value) {
      using X = decltype(number);
      using Value = decltype(value);
      if (layout == Layout::kRows) {
        const dim3 grid = grid_of(divide_up(weight.rows, kCsrThreads / kWarp), divide_up(columns, kRowTokens));
        spmm_csr_rows<X, Value><<<grid, kCsrThreads, 0, cuda_stream>>>(weight, x, columns, out);
      } else {
        const dim3 grid = grid_of(weight.rows, divide_up(batch * columns, kCsrThreads));
        spmm_csr_columns<X, Value><<<grid, kCsrThreads, 0, cuda_stream>>>(weight, x, batch, columns, out);
      }
    });
  });
  return launch_error();
}

}  // namespace sparsecore::cuda
