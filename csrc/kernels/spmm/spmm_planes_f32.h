// spmm, weights of bit planes: algorithm text. A row's weights have one magnitude for each plane, so that a product is
// a sum of activations, and 4 columns allow only 16 sums. Those are made once for all rows and then looked up by 4 bits
// of the weight (as T-MAC does for integers: Wei et al., T-MAC, EuroSys 2025, section 3).
//
//   columns 4 g .. 4 g + 3 of x: a b c d       one plane (signs)     table[0b0000] = a + b + c + d
//                                                                    table[0b0101] = - a + b - c + d
//                                              two planes            table[0b0101] = a + c, for either plane
//
// Many activations: lanes are activations. A table is 16 vectors in the first-level cache, and 4 weights cost one
// addition from memory where a dense product takes 4 multiply-adds.
// Few: lanes are rows of the weight. A table is one vector in a register, out of which a permutation looks up a number
// for each lane: 2^kTableBits numbers, of as many columns.
//
// K is cut into panels whose tables stay in cache; the sums of a chunk of rows wait in scratch between them. A weight
// of zero takes part in no sum. Sums are not scaled before the end of a panel.
#pragma once

#include "kernels/spmm/activation_tile.h"
#include "kernels/spmm/finish_row.h"
#include "simd/activation.h"

namespace sparsecore {
namespace {

constexpr int64_t kPlaneRows = kPlaneBlockRows;
constexpr int kCodeBits = 4, kCodes = 1 << kCodeBits, kCodesOfWord = kPlaneWordBits / kCodeBits;
// Of 8, 16, 32 and 64 KiB the last two were best on Zen 4, whose first-level cache has 32: fewer panels, fewer sums to
// load and store.
constexpr int64_t kTableBytes = 32768;
// Rows whose sums wait in scratch. Every chunk makes the tables anew, at about the price of 16 rows.
constexpr int64_t kChunkBlocks = 64;

// Widest tile of many activations: a cache line. Wider ones share the search for their tables, but leave fewer columns
// to a panel; with two lines it took a tenth longer on Zen 4.
template <class S>
constexpr int kMaxTileVectors = S::kLanes >= 4 ? 16 / S::kLanes : 4;

// Calls function(Constant<V>) for the least power of two V that is at least `vectors`.
template <int kMax, class Function>
SPARSECORE_INLINE void with_power_of_two(int64_t vectors, Function function) {
  if constexpr (kMax > 1) {
    if (vectors <= kMax / 2) return with_power_of_two<kMax / 2>(vectors, function);
  }
  function(Constant<kMax>{});
}

// Rows of x up to which their number decides the time, and not the vectors that they fill.
template <class S>
constexpr int kMostFewRows = S::kTableBits == 0 ? 0 : S::kLanes / 2;

// The words of plane p of a block: 16 for each 32 columns, every `planes * 16`.
SPARSECORE_INLINE const uint32_t* plane_words(const PlanesView& weight, int64_t block, int64_t word, int plane) {
  return weight.words + ((block * weight.num_words() + word) * weight.planes + plane) * kPlaneRows;
}

SPARSECORE_INLINE const float* plane_scale(const PlanesView& weight, int plane) {
  return weight.scale + plane * weight.num_blocks() * kPlaneRows;
}

// --- many activations ---

// The sums of two columns, by their two bits.
template <class S, bool kIsSigned>
SPARSECORE_INLINE void pair_sums(typename S::F32 a, typename S::F32 b, typename S::F32 (&sums)[4]) {
  if constexpr (kIsSigned) {
    sums[0] = S::add(a, b);
    sums[1] = S::sub(b, a);
    sums[2] = S::sub(a, b);
    sums[3] = S::sub(S::sub(S::zero(), a), b);
  } else {
    sums[0] = S::zero();
    sums[1] = a;
    sums[2] = b;
    sums[3] = S::add(a, b);
  }
}

// x[4 * groups][W] to tables[groups][16][W].
template <class S, bool kIsSigned>
void fill_wide_tables(const float* x, int64_t groups, int64_t W, float* tables) {
  for (int64_t g = 0; g < groups; ++g, x += kCodeBits * W, tables += kCodes * W) {
    for (int64_t at = 0; at < W; at += S::kLanes) {
      typename S::F32 low[4], high[4];
      pair_sums<S, kIsSigned>(S::load(x + at), S::load(x + W + at), low);
      pair_sums<S, kIsSigned>(S::load(x + 2 * W + at), S::load(x + 3 * W + at), high);
      SPARSECORE_UNROLL
      for (int code = 0; code < kCodes; ++code)
        S::store(tables + code * W + at, S::add(low[code & 3], high[code >> 2]));
    }
  }
}

// sums[R][W] += rows `row` to `row + R` of a block, in the columns of a panel.
template <class S, int V, int P, int R>
SPARSECORE_INLINE void add_rows(const PlanesView& weight, int64_t block, int row, Range words, const float* tables,
                                float* sums) {
  constexpr int L = S::kLanes, W = V * L;
  constexpr uint64_t kStep = W * sizeof(float);  // bytes from number to number of a table: a power of two
  typename S::F32 acc[R][P][V];
  SPARSECORE_UNROLL
  for (int i = 0; i < R * P * V; ++i) acc[i / (P * V)][i / V % P][i % V] = S::zero();
  for (int64_t word = words.begin; word < words.end; ++word, tables += kCodesOfWord * kCodes * W) {
    uint32_t bits[R][P];
    SPARSECORE_UNROLL
    for (int i = 0; i < R * P; ++i) bits[i / P][i % P] = plane_words(weight, block, word, i % P)[row + i / P];
    SPARSECORE_UNROLL
    for (int code = 0; code < kCodesOfWord; ++code) {
      SPARSECORE_UNROLL
      for (int i = 0; i < R * P; ++i) {
        const uint64_t offset = uint64_t(bits[i / P][i % P]) * kStep >> (code * kCodeBits) & (kCodes - 1) * kStep;
        const char* table = reinterpret_cast<const char*>(tables + code * kCodes * W) + offset;
        SPARSECORE_UNROLL
        for (int v = 0; v < V; ++v)
          acc[i / P][i % P][v] = S::add(acc[i / P][i % P][v], S::load(reinterpret_cast<const float*>(table) + v * L));
      }
    }
  }
  SPARSECORE_UNROLL
  for (int r = 0; r < R; ++r) {
    SPARSECORE_UNROLL
    for (int v = 0; v < V; ++v) {
      float* to = sums + r * W + v * L;
      auto sum = S::load(to);
      SPARSECORE_UNROLL
      for (int p = 0; p < P; ++p) {
        sum = S::fma(S::set1(plane_scale(weight, p)[block * kPlaneRows + row + r]), acc[r][p][v], sum);
      }
      S::store(to, sum);
    }
  }
}

// --- few activations ---

template <class S>
constexpr int kTableSize = 1 << S::kTableBits;
template <class S>
constexpr int kTablesOfWord = (kPlaneWordBits + S::kTableBits - 1) / S::kTableBits;

// The lanes of a table whose number has that bit.
template <class S>
constexpr uint32_t lanes_with_bit(int bit) {
  uint32_t lanes = 0;
  for (int code = 0; code < S::kLanes; ++code) lanes |= (uint32_t(code) >> bit & 1u) << code;
  return lanes;
}

// x[32 * words], one row, to a table for each kTableBits columns of every word, `stride` floats apart.
template <class S, bool kIsSigned>
void fill_narrow_tables(const float* x, int64_t words, int64_t stride, float* tables) {
  for (int64_t word = 0; word < words; ++word, x += kPlaneWordBits) {
    for (int t = 0; t < kTablesOfWord<S>; ++t, tables += stride) {
      auto table = S::zero();
      SPARSECORE_UNROLL
      for (int bit = 0; bit < S::kTableBits; ++bit) {
        const int k = t * S::kTableBits + bit;
        if (k >= kPlaneWordBits) break;
        const auto number = S::set1(x[k]);
        const auto lanes = S::lanes_of(lanes_with_bit<S>(bit));
        if constexpr (kIsSigned) {
          const auto sign = S::fma_on(lanes, S::set1(-2.0f), S::set1(1.0f), S::set1(1.0f));
          table = S::fma(number, sign, table);
        } else {
          table = S::fma_on(lanes, number, S::set1(1.0f), table);
        }
      }
      S::store(tables, table);
    }
  }
}

// Vectors of rows that share each loaded table: sums and indices in three quarters of the registers.
template <class S, int M, int P>
constexpr int units_at_once() {
  for (int units = 8; units > 1; units /= 2) {
    if (units * P * (M + 1) <= S::kRegisters * 3 / 4) return units;
  }
  return 1;
}

// sums[M][ld] += U vectors of rows from number `unit` of the weight on, in the columns of a panel.
template <class S, int M, int P, int U>
SPARSECORE_INLINE void add_units(const PlanesView& weight, int64_t unit, Range words, const float* tables, float* sums,
                                 int64_t ld) {
  constexpr int L = S::kLanes, kUnitsOfBlock = static_cast<int>(kPlaneRows) / L;
  typename S::F32 acc[U][P][M];
  SPARSECORE_UNROLL
  for (int i = 0; i < U * P * M; ++i) acc[i / (P * M)][i / M % P][i % M] = S::zero();
  for (int64_t word = words.begin; word < words.end; ++word) {
    typename S::Index index[U][P];
    SPARSECORE_UNROLL
    for (int i = 0; i < U * P; ++i) {
      const int64_t at = unit + i / P;
      index[i / P][i % P] =
          S::load_index(plane_words(weight, at / kUnitsOfBlock, word, i % P) + at % kUnitsOfBlock * L);
    }
    // Not unrolled: GCC 12 would shift all indices first and spill them, which took twice the time for 8 rows.
    for (int t = 0; t < kTablesOfWord<S>; ++t) {
      SPARSECORE_UNROLL
      for (int m = 0; m < M; ++m, tables += kTableSize<S>) {
        const auto table = S::load(tables);
        SPARSECORE_UNROLL
        for (int i = 0; i < U * P; ++i) {
          acc[i / P][i % P][m] = S::add(acc[i / P][i % P][m], S::lookup(table, index[i / P][i % P]));
        }
      }
      SPARSECORE_UNROLL
      for (int i = 0; i < U * P; ++i) index[i / P][i % P] = S::template shift_right<S::kTableBits>(index[i / P][i % P]);
    }
  }
  SPARSECORE_UNROLL
  for (int u = 0; u < U; ++u) {
    SPARSECORE_UNROLL
    for (int m = 0; m < M; ++m) {
      float* to = sums + m * ld + u * L;
      auto sum = S::load(to);
      SPARSECORE_UNROLL
      for (int p = 0; p < P; ++p) sum = S::fma(S::load(plane_scale(weight, p) + (unit + u) * L), acc[u][p][m], sum);
      S::store(to, sum);
    }
  }
}

template <class S>
struct SpmmPlanesF32 {
  static bool supports(const SpmmPlanesArgs&) { return true; }

  static bool is_few(const SpmmPlanesArgs& args) {
    return kMostFewRows<S> > 0 && args.layout == Layout::kRows && args.columns <= kMostFewRows<S>;
  }

  // Columns of activations of a tile, and floats of a table for one column of the weight.
  static int64_t tile_columns(const SpmmPlanesArgs& args) {
    if (is_few(args)) return larger(args.columns, 1);
    int64_t columns = S::kLanes;
    while (columns < num_columns(args) && columns < kMaxTileVectors<S> * S::kLanes) columns *= 2;
    return columns;
  }
  static int64_t table_floats(const SpmmPlanesArgs& args) {  // of all tables of a word
    int64_t numbers = kCodesOfWord * kCodes;
    if constexpr (S::kTableBits > 0) {
      if (is_few(args)) numbers = kTablesOfWord<S> * kTableSize<S>;
    }
    return tile_columns(args) * numbers;
  }
  static int64_t panel_words(const SpmmPlanesArgs& args) {
    return larger(kTableBytes / (table_floats(args) * int64_t(sizeof(float))), 1);
  }

  static int64_t num_tiles(const SpmmPlanesArgs& args) { return divide_up(num_columns(args), tile_columns(args)); }

  // [ activations of one panel | its tables | sums of one chunk ]
  static int64_t scratch_bytes(const SpmmPlanesArgs& args) {
    const int64_t columns = tile_columns(args), words = panel_words(args);
    const int64_t rows = smaller(kChunkBlocks, args.weight.num_blocks()) * kPlaneRows;
    return (words * (kPlaneWordBits * columns + table_floats(args)) + rows * columns) * int64_t(sizeof(float));
  }

  static void run(const SpmmPlanesArgs& args, Range blocks, Range tiles, void* scratch) {
    if (args.weight.planes == 1) {
      run_planes<1>(args, blocks, tiles, static_cast<float*>(scratch));
    } else {
      run_planes<2>(args, blocks, tiles, static_cast<float*>(scratch));
    }
  }

 private:
  template <int P>
  static void run_planes(const SpmmPlanesArgs& args, Range blocks, Range tiles, float* scratch) {
    const int64_t columns = tile_columns(args);
    if constexpr (S::kTableBits > 0) {
      if (is_few(args)) {
        if (tiles.size() == 0) return;
        with_vectors<kMostFewRows<S>>(static_cast<int>(columns),
                                      [&](auto count) { run_few<decltype(count)::value, P>(args, blocks, scratch); });
        return;
      }
    }
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const int64_t begin = t * columns, width = smaller(columns, num_columns(args) - begin);
      with_power_of_two<kMaxTileVectors<S>>(divide_up(width, S::kLanes), [&](auto count) {
        run_many<decltype(count)::value, P>(args, blocks, begin, width, scratch);
      });
    }
  }

  // function(words, columns) for the panels.
  template <class Function>
  SPARSECORE_INLINE static void for_each_panel(const SpmmPlanesArgs& args, Function function) {
    const int64_t words = panel_words(args), num_words = args.weight.num_words();
    for (int64_t word = 0; word < num_words; word += words) {
      const Range panel{word, smaller(word + words, num_words)};
      function(panel, Range{panel.begin * kPlaneWordBits, smaller(panel.end * kPlaneWordBits, args.weight.cols)});
    }
  }

  template <int V, int P>
  static void run_many(const SpmmPlanesArgs& args, Range blocks, int64_t begin, int64_t width, float* x) {
    constexpr int64_t W = V * S::kLanes;
    const TileColumns columns{begin, width, W};
    constexpr int R = P * V >= 4 ? 1 : 4 / (P * V);  // independent sums
    const PlanesView& weight = args.weight;
    float* tables = x + panel_words(args) * kPlaneWordBits * W;
    float* sums = tables + panel_words(args) * table_floats(args);
    for (int64_t block = blocks.begin; block < blocks.end; block += kChunkBlocks) {
      const Range chunk{block, smaller(block + kChunkBlocks, blocks.end)};
      const Range rows{chunk.begin * kPlaneRows, smaller(chunk.end * kPlaneRows, weight.rows)};
      fill_zero(sums, chunk.size() * kPlaneRows * W);
      if (args.residual != nullptr) load_residual<S>(args, columns, rows, sums);
      for_each_panel(args, [&](Range words, Range k) {
        pack_tile<S>(args, columns, k, x);
        fill_zero(x + k.size() * W, (words.size() * kPlaneWordBits - k.size()) * W);
        fill_wide_tables<S, P == 1>(x, words.size() * kCodesOfWord, W, tables);
        float* to = sums;
        for (int64_t b = chunk.begin; b < chunk.end; ++b) {
          for (int row = 0; row < kPlaneRows; row += R, to += R * W)
            add_rows<S, V, P, R>(weight, b, row, words, tables, to);
        }
      });
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        float* row = sums + (n - rows.begin) * W;
        typename S::F32 acc[V];
        SPARSECORE_UNROLL
        for (int v = 0; v < V; ++v) acc[v] = S::load(row + v * S::kLanes);
        apply_epilogue<S, V>(acc, args.epilogue.bias_of(n), args.epilogue.activation);
        SPARSECORE_UNROLL
        for (int v = 0; v < V; ++v) S::store(row + v * S::kLanes, acc[v]);
      }
      store_rows<S>(args, columns, rows, sums);
    }
  }

  template <int M, int P>
  static void run_few(const SpmmPlanesArgs& args, Range blocks, float* x) {
    constexpr int64_t kUnitsOfBlock = kPlaneRows / S::kLanes;
    constexpr int U = units_at_once<S, M, P>();
    const PlanesView& weight = args.weight;
    const int64_t ldx = panel_words(args) * kPlaneWordBits;
    float* tables = x + M * ldx;
    float* sums = tables + panel_words(args) * table_floats(args);
    for (int64_t block = blocks.begin; block < blocks.end; block += kChunkBlocks) {
      const Range chunk{block, smaller(block + kChunkBlocks, blocks.end)};
      const Range units{chunk.begin * kUnitsOfBlock, chunk.end * kUnitsOfBlock};
      const int64_t ld = chunk.size() * kPlaneRows;
      fill_zero(sums, M * ld);
      for_each_panel(args, [&](Range words, Range k) {
        load_rows(args, k, words.size() * kPlaneWordBits, x, ldx);
        for (int m = 0; m < M; ++m) {
          fill_narrow_tables<S, P == 1>(x + m * ldx, words.size(), M * kTableSize<S>, tables + m * kTableSize<S>);
        }
        int64_t unit = units.begin;
        for (; unit + U <= units.end; unit += U) {
          add_units<S, M, P, U>(weight, unit, words, tables, sums + (unit - units.begin) * S::kLanes, ld);
        }
        for (; unit < units.end; ++unit) {
          add_units<S, M, P, 1>(weight, unit, words, tables, sums + (unit - units.begin) * S::kLanes, ld);
        }
      });
      const Range rows{chunk.begin * kPlaneRows, smaller(chunk.end * kPlaneRows, weight.rows)};
      for (int m = 0; m < M; ++m) finish_row<S>(args, m, rows, sums + m * ld);
    }
  }

  // Columns k of all rows of x as float32, zeros up to `size`.
  static void load_rows(const SpmmPlanesArgs& args, Range k, int64_t size, float* to, int64_t ld) {
    with_dtype(args.dtype, [&](auto tag) SPARSECORE_LAMBDA_INLINE {
      const auto* x = static_cast<const typename decltype(tag)::type*>(args.x) + k.begin;
      for (int64_t m = 0; m < args.columns; ++m) {
        copy_numbers<S>(x + m * args.ldx, to + m * ld, k.size());
        fill_zero(to + m * ld + k.size(), size - k.size());
      }
    });
  }
};

}  // namespace
}  // namespace sparsecore
