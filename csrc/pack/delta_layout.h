// Where the delta format keeps what: the arithmetic that packing, the host decoder and the CUDA kernel share.
//
// A weight [N, K] in panels of 4096 columns, so that activations of a panel fit into shared memory. A row of a panel is
// a list of entries in order, in quads of four codes (a byte each) and four values:
//
//   code 0 .. 254   an entry, so many columns after the one before it; the first counts from the panel's first column
//   code 255        no entry, but go 255 columns on: for wider gaps, and at the end to fill the last quad
//
// so an entry's column is the sum of all codes up to its own: a warp finds 128 columns by one running sum over lanes.
//
//   row with entries a, b and c in columns 2, 700 and 701:
//     codes    2 255 255 188 | 1 255 255 255        2 + 255 + 255 + 188 = 700
//     values   a  0   0   b  | c  0   0   0
//
// Quads of a panel's rows stand behind each other, those of the first panel first: row n of panel p is unit p * N + n,
// quads quad_ptr[unit] .. quad_ptr[unit + 1].
#pragma once

#include <cstdint>

#include "pack/device_text.h"

namespace sparsecore {

inline constexpr int kDeltaPanel = 4096;
inline constexpr int kDeltaQuad = 4;
inline constexpr int kDeltaSkip = 255;  // the code without an entry

SPARSECORE_HOST_DEVICE int64_t delta_panels(int64_t cols) { return (cols + kDeltaPanel - 1) / kDeltaPanel; }

// Columns of a panel.
SPARSECORE_HOST_DEVICE int64_t delta_panel_cols(int64_t cols, int64_t panel) {
  const int64_t rest = cols - panel * kDeltaPanel;
  return rest < kDeltaPanel ? rest : kDeltaPanel;
}

// Codes, with one for the entry, of an entry that is `gap` columns on.
SPARSECORE_HOST_DEVICE int64_t delta_codes(int64_t gap) { return gap / kDeltaSkip + 1; }

}  // namespace sparsecore
