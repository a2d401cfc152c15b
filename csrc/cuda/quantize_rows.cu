#include "cuda/quantize_rows.h"

#include "cuda/launch.h"

namespace sparsecore::cuda {

const char* quantize_rows(const QuantizeRows& args, Stream stream) {
  if (args.M == 0) return nullptr;
  if (args.M > kMaxGridX) return "too many rows of x";
  constexpr int kShared = kQuantizeThreads / kWarp * int(sizeof(float));
  with_number(args.dtype, [&](auto number) {
    quantize_rows_kernel<decltype(number)>
        <<<grid_of(args.M, 1), kQuantizeThreads, kShared, static_cast<cudaStream_t>(stream)>>>(args);
  });
  return launch_error();
}

}  // namespace sparsecore::cuda
