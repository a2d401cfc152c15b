// Walks the codes of a row of a panel as a warp of the CUDA kernel does, on the CPU: the same quads in the same lanes,
// the same running sums. What it returns is what the kernel multiplies with.
#pragma once

#include <cstdint>

#include "pack/delta_layout.h"

namespace sparsecore {

// function(column in the panel, position of the value) for every entry that the kernel multiplies with: by step, lane
// and place in the quad. Of tampered codes those that leave the panel are left out, as in the kernel.
template <class Function>
void decode_delta_row(const uint8_t* codes, int64_t first_quad, int64_t end_quad, int64_t panel_cols,
                      Function function) {
  constexpr int kLanes = 32;
  uint32_t base = 0;
  for (int64_t step = first_quad; step < end_quad; step += kLanes) {
    uint32_t lane_codes[kLanes][kDeltaQuad], before[kLanes], sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      before[lane] = sum;
      for (int e = 0; e < kDeltaQuad; ++e) {
        lane_codes[lane][e] = step + lane < end_quad ? codes[(step + lane) * kDeltaQuad + e] : kDeltaSkip;
        sum += lane_codes[lane][e];
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t col = base + before[lane];
      for (int e = 0; e < kDeltaQuad; ++e) {
        col += lane_codes[lane][e];
        if (lane_codes[lane][e] != kDeltaSkip && col < panel_cols) {
          function(int64_t(col), (step + lane) * kDeltaQuad + e);
        }
      }
    }
    base += sum;
  }
}

}  // namespace sparsecore
