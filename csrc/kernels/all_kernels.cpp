// The list of all tables: a new operation adds its line here.
#include <vector>

#include "sparsecore/codebook.h"
#include "sparsecore/ops.h"

namespace sparsecore {
namespace {

template <class Rows>
void append(std::vector<KernelInfo>& list, const char* op, Rows rows) {
  for (const auto& row : rows) list.push_back({op, row.name, row.isa});
}

}  // namespace

std::span<const KernelInfo> all_kernels() {
  static const std::vector<KernelInfo> list = [] {
    std::vector<KernelInfo> result;
    append(result, "spmm", spmm_kernels());
    append(result, "spmm_block", spmm_block_kernels());
    append(result, "spmm_panel", spmm_panel_kernels());
    append(result, "spmm_jit", spmm_jit_kernels());
    append(result, "spmm_bitmap", spmm_bitmap_kernels());
    append(result, "spmm_codebook", spmm_codebook_kernels());
    append(result, "spmm_planes", spmm_planes_kernels());
    append(result, "conv2d", conv2d_kernels());
    append(result, "conv2d_block", conv2d_block_kernels());
    append(result, "conv2d_panel", conv2d_panel_kernels());
    append(result, "conv2d_jit", conv2d_jit_kernels());
    append(result, "pool2d", pool2d_kernels());
    append(result, "scale_shift", scale_shift_kernels());
    append(result, "depthwise", depthwise_kernels());
    append(result, "gemm_int8", gemm_int8_kernels());
    append(result, "bitmap_int8", bitmap_int8_kernels());
    append(result, "lookup_int8", lookup_int8_kernels());
    append(result, "lookup_int4", lookup_int4_kernels());
    append(result, "quantize", quantize_kernels());
    append(result, "probe", probes());
    return result;
  }();
  return list;
}

}  // namespace sparsecore
