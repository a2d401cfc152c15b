// Multiplies the matrix of views.h by a vector with an installed sparsecore; returns 0 if the product is right.
#include <sparsecore/ops.h>
#include <sparsecore/pack.h>
#include <sparsecore/split.h>

#include <vector>

int main() {
  const int32_t row_ptr[] = {0, 2, 2, 3}, col_idx[] = {0, 2, 1};
  const float values[] = {5, 7, 9}, x[] = {1, 2, 3};
  float y[3];
  if (sparsecore::validate_csr(3, 3, row_ptr, col_idx, {0, 3}) != nullptr) return 1;

  sparsecore::SpmmArgs args{
      .weight = {3, 3, 3, row_ptr, col_idx, values}, .columns = 1, .x = x, .ldx = 3, .y = y, .ldy = 3};
  const auto& kernel = sparsecore::select_kernel(sparsecore::spmm_kernels(), args);
  std::vector<std::byte> scratch(kernel.scratch_bytes(args));
  for (const auto& share : sparsecore::split_work(row_ptr, 3, kernel.num_tiles(args), 2)) {
    for (const auto& task : share) kernel.run(args, task.rows, task.tiles, scratch.data());
  }
  return y[0] == 26 && y[1] == 0 && y[2] == 18 ? 0 : 2;
}
