// The kernels of the fragment format on emulated threads, against float64 sums over the stored entries.
#include "cuda/spmm_fragment_wide.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "csr.h"
#include "numbers.h"
#include "oracle.h"
#include "pack/fragment.h"
#include "random.h"
#include "sparsecore/pack.h"

namespace sparsecore::cuda {
namespace {

using test::Buffer;
using test::Guard;
using test::Numbers;

constexpr float kScales[] = {0.25f, 0.5f, 1.0f, 2.0f};

// A weight of value_bits as dense numbers and packed, activations, and room for the results.
struct Case {
  Case(test::Random& random, Dtype number, int bits, int64_t n, int64_t k, int64_t m)
      : shape{n, k, bits},
        dtype(number),
        M(m),
        weight(size_t(n * k)),
        present(size_t(n * k)),
        tile_ptr(shape.num_tiles() + 1, Guard::kAfter),
        x(number, m * k, Guard::kAfter),
        residual(number, m * n, Guard::kAfter),
        y(Numbers::unwritten(number, m * n, Guard::kAfter)),
        bias(n, Guard::kAfter),
        scale(n, Guard::kAfter),
        activation(random.pick(test::kAllActivations)),
        num_blocks(random.pick<int64_t>({1, 2, 3, 7, 40})),
        block_ptr(num_blocks + 1, Guard::kAfter),
        row_block(shape.row_tiles(), Guard::kAfter),
        blob(0, Guard::kAfter, kFragmentUnit) {
    const double density = random.chance(0.2) ? double(random.integer(0, 1)) : 0.5 * (random.number() + 1.0);
    for (float& s : scale) s = random.pick(kScales);
    for (float& b : bias) b = random.number();
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, rounded(random));
    for (int64_t i = 0; i < residual.size(); ++i) residual.set(i, rounded(random));
    if (bits == 16) {
      pack<uint16_t>(random, density);
    } else {
      pack<int8_t>(random, density);
    }
  }

  FragmentArrays arrays() const {
    return {shape.rows,
            shape.cols,
            shape.value_bits,
            stage_bytes,
            tile_ptr.data(),
            blob.data(),
            blob.size(),
            block_ptr.data(),
            row_block.data(),
            num_blocks,
            shape.value_bits == 8 ? scale.data() : nullptr};
  }

  void expect_right(int64_t num_partials) const {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < shape.rows; ++n) {
        test::Sum sum;
        for (int64_t k = 0; k < shape.cols; ++k) {
          if (present[size_t(n * shape.cols + k)])
            sum.add(weight[size_t(n * shape.cols + k)], double(x[m * shape.cols + k]));
        }
        const int64_t at = m * shape.rows + n;
        sum.add(1.0, double(residual[at]));
        sum.terms += num_partials;
        const test::Expected expected = test::expect_sum(sum, bias[n], activation);
        ASSERT_TRUE(test::is_close(y, at, expected)) << test::describe(y, at, expected) << " at " << m << ", " << n;
      }
    }
  }

  FragmentShape shape;
  Dtype dtype;
  int64_t M;
  std::vector<double> weight;
  std::vector<bool> present;
  Buffer<int32_t> tile_ptr;
  Numbers x, residual, y;
  Buffer<float> bias, scale;
  Activation activation;
  int64_t num_blocks;
  Buffer<int32_t> block_ptr, row_block;
  int stage_bytes = kFragmentMaskBytes;
  Buffer<uint8_t> blob;

 private:
  float rounded(test::Random& random) const { return static_cast<float>(test::round_to(dtype, random.number())); }

  template <class T>
  void pack(test::Random& random, double density) {
    test::Csr<T> csr{shape.rows, shape.cols, {0}, {}, {}};
    std::vector<uint16_t> group_scales;
    for (int64_t i = 0; i < shape.rows * shape.col_tiles(); ++i) {
      group_scales.push_back(test::encode(Dtype::kFloat16, double(random.pick(kScales))));
    }
    for (int64_t n = 0; n < shape.rows; ++n) {
      for (int64_t k = 0; k < shape.cols; ++k) {
        if (!random.chance(density)) continue;
        const auto at = size_t(n * shape.cols + k);
        present[at] = true;
        csr.col_idx.push_back(int32_t(k));
        if (shape.value_bits == 16) {
          const float value = rounded(random);
          csr.values.push_back(T(test::encode(dtype, double(value))));
          weight[at] = double(value);
        } else {
          const int64_t value = shape.value_bits == 8 ? random.integer(-128, 127) : random.integer(-8, 7);
          csr.values.push_back(T(value));
          const auto group = size_t(n * shape.col_tiles() + k / kFragmentTile);
          weight[at] =
              double(value) *
              (shape.value_bits == 8 ? double(scale[n]) : double(test::decode(Dtype::kFloat16, group_scales[group])));
        }
      }
      csr.row_ptr.push_back(int32_t(csr.values.size()));
    }
    const Range all{0, shape.row_tiles()};
    tile_ptr[0] = 0;
    count_fragment<T>(csr.view(), shape, all, tile_ptr.data());
    Buffer<uint8_t> bytes(running_sum(tile_ptr.data(), shape.num_tiles()) * kFragmentUnit, Guard::kAfter,
                          kFragmentUnit);
    fill_fragment<T>(csr.view(), shape, group_scales.data(), all, tile_ptr.data(), bytes.data());
    std::destroy_at(&blob);
    std::construct_at(&blob, std::move(bytes));
    for (int64_t t = 0; t < shape.num_tiles(); ++t) {
      stage_bytes = std::max(stage_bytes, (tile_ptr[t + 1] - tile_ptr[t]) * kFragmentUnit);
    }
    split_fragment({shape, tile_ptr.data(), blob.data(), blob.size()}, num_blocks, block_ptr.data(), row_block.data());
  }
};

// Rows of x and y from `first` on.
struct Rows {
  Rows(Case& c, int64_t first, int64_t most)
      : count(int(std::min(c.M - first, most))),
        x(static_cast<const uint16_t*>(c.x.data()) + first * c.shape.cols),
        is_aligned(c.shape.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 8 == 0),
        out{static_cast<uint16_t*>(c.y.data()) + first * c.shape.rows,
            static_cast<const uint16_t*>(c.residual.data()) + first * c.shape.rows, c.bias.data(), c.activation} {}

  int count;
  const uint16_t* x;
  bool is_aligned;
  SpmmOutput out;
};

// As spmm_fragment.cu launches them: decode(rows, partial), then finish, for so many rows of x at a time.
template <class Number, int kTokenTiles, class Decode>
void run_passes(Case& c, uint32_t seed, Decode decode) {
  constexpr int64_t kTokens = kTokenTile * kTokenTiles;
  const FragmentArrays weight = c.arrays();
  for (int64_t first = 0; first < c.M; first += kTokens) {
    const Rows rows(c, first, kTokens);
    Buffer<float> partial = test::unwritten_output(
        fragment_slots(c.num_blocks, c.shape.row_tiles()) * kFragmentTile * kTokens, Guard::kAfter);
    decode(rows, partial.data());
    run_grid({c.shape.row_tiles(), 1}, kWarp, 0, seed, [&] {
      spmm_fragment_finish<Number, FloatFinish, kTokenTiles>(weight, partial.data(), {rows.count, rows.out});
    });
  }
}

template <class Values, int kTokenTiles, bool kBulk>
void run(Case& c, int warps, uint32_t seed) {
  const FragmentArrays weight = c.arrays();
  const FragmentShared shared{warps, kTokenTiles, weight.stage_bytes};
  run_passes<typename Values::Number, kTokenTiles>(c, seed, [&](const Rows& rows, float* partial) {
    run_grid({c.num_blocks, 1}, warps * kWarp, shared.bytes(), seed, [&] {
      spmm_fragment_decode<Values, kTokenTiles, kBulk>(weight, rows.x, rows.is_aligned, rows.count, partial);
    });
  });
}

template <class Values, int kTokenTiles, bool kBulk>
void run_wide(Case& c, uint32_t seed) {
  const FragmentArrays weight = c.arrays();
  const WideShared shared{weight.stage_bytes};
  run_passes<typename Values::Number, kWideWarps * kTokenTiles>(c, seed, [&](const Rows& rows, float* partial) {
    run_grid({c.num_blocks, 1}, kFragmentThreads, shared.bytes(), seed, [&] {
      spmm_fragment_wide<Values, kTokenTiles, kBulk>(weight, rows.x, rows.is_aligned, rows.count, partial);
    });
  });
}

template <class Values>
void run_any(Case& c, test::Random& random, uint32_t seed) {
  const int warps = random.pick({1, 2, 4});
  const auto with_tiles = [&](auto bulk) {
    if (c.M > 200) return run_wide<Values, 4, bulk.value>(c, seed);
    if (c.M > 64) return run_wide<Values, 2, bulk.value>(c, seed);
    if (c.M > 32) return run_wide<Values, 1, bulk.value>(c, seed);
    if (c.M <= 8) return run<Values, 1, bulk.value>(c, warps, seed);
    if (c.M <= 16) return run<Values, 2, bulk.value>(c, warps, seed);
    run<Values, 4, bulk.value>(c, warps, seed);
  };
  if (random.chance(0.5)) {
    with_tiles(std::true_type());
  } else {
    with_tiles(std::false_type());
  }
}

template <class Function>
void with_values(Dtype dtype, int bits, Function function) {
  const auto with_bits = [&](auto number) {
    using Number = decltype(number);
    if (bits == 16) return function(Values16<Number>{});
    if (bits == 8) return function(Values8<Number>{});
    function(Values4<Number>{});
  };
  if (dtype == Dtype::kFloat16) return with_bits(Half{});
  with_bits(Brain{});
}

constexpr int64_t kFewRows[] = {1, 3, 8, 9, 16, 17, 32};
constexpr int64_t kManyRows[] = {33, 64, 65, 100, 130, 257};

template <size_t kCount>
Case random_case(test::Random& random, const int64_t (&rows)[kCount]) {
  const Dtype dtype = random.pick({Dtype::kFloat16, Dtype::kBFloat16});
  const int bits = random.pick({16, 8, 4});
  return Case(random, dtype, bits, random.pick<int64_t>({1, 63, 64, 65, 130}),
              random.pick<int64_t>({0, 1, 17, 64, 68, 130, 260}), random.pick(rows));
}

TEST(CudaSpmmFragment, EqualsFloat64) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, kFewRows);
    with_values(c.dtype, c.shape.value_bits, [&](auto values) { run_any<decltype(values)>(c, random, seed); });
    c.expect_right(4 + c.num_blocks);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaSpmmFragment, ManyRowsInOneReadingEqualFloat64) {
  for (uint32_t seed = 0; seed < 16; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, kManyRows);
    with_values(c.dtype, c.shape.value_bits, [&](auto values) { run_any<decltype(values)>(c, random, seed); });
    c.expect_right(4 + c.num_blocks);
    if (HasFatalFailure()) return;
  }
}

// int8 by int8, as spmm_fragment.cu launches it. Scales are powers of two and sums below 2^24, so results are equal.
template <int kTokenTiles, bool kIsWide, bool kBulk>
void run_int8(Case& c, const Int8Activations& input, uint32_t seed) {
  const int8_t* x = input.x;
  constexpr int kTiles = kTokenTiles * (kIsWide ? kWideWarps : 1);
  const FragmentArrays weight = c.arrays();
  const bool is_aligned = weight.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 4 == 0;
  Buffer<int32_t> partial(fragment_slots(c.num_blocks, c.shape.row_tiles()) * kFragmentTile * kTokenTile * kTiles,
                          Guard::kAfter);
  for (int32_t& sum : partial) sum = 0x7fdeadbe;
  if constexpr (kIsWide) {
    run_grid({c.num_blocks, 1}, kFragmentThreads, WideShared{weight.stage_bytes}.bytes(), seed,
             [&] { spmm_fragment_wide<Bytes8, kTokenTiles, kBulk>(weight, x, is_aligned, int(c.M), partial.data()); });
  } else {
    run_grid({c.num_blocks, 1}, 2 * kWarp, FragmentShared{2, kTokenTiles, weight.stage_bytes}.bytes(), seed, [&] {
      spmm_fragment_decode<Bytes8, kTokenTiles, kBulk>(weight, x, is_aligned, int(c.M), partial.data());
    });
  }
  const Int8Output out{{c.y.data(), nullptr, nullptr, Activation::kNone}};
  run_grid({c.shape.row_tiles(), 1}, kWarp, 0, seed,
           [&] { spmm_fragment_finish<Float32, Int8Finish, kTiles>(weight, partial.data(), {int(c.M), input, out}); });
}

TEST(CudaSpmmFragmentInt8, EqualsInt64) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c(random, Dtype::kFloat32, 8, random.pick<int64_t>({1, 64, 65, 130}),
           random.pick<int64_t>({0, 1, 17, 64, 130, 260}), random.pick<int64_t>({1, 8, 9, 16, 30, 64, 70}));
    Buffer<int8_t> x(c.M * c.shape.cols, Guard::kAfter, random.pick<int64_t>({1, 4}));
    Buffer<float> x_scale(c.M, Guard::kAfter);
    for (int8_t& number : x) number = static_cast<int8_t>(random.integer(-128, 127));
    for (float& number : x_scale) number = random.pick(kScales);
    Buffer<int32_t> weight_sum(c.shape.rows, Guard::kAfter);
    for (int64_t n = 0; n < c.shape.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < c.shape.cols; ++k) sum += c.weight[size_t(n * c.shape.cols + k)];
      weight_sum[n] = static_cast<int32_t>(sum / double(c.scale[n]));
    }
    const int32_t zero_point = random.chance(0.5) ? 0 : static_cast<int32_t>(random.integer(-128, 127));
    const Int8Activations input{c.M, x.data(), x_scale.data(), 1.0f, zero_point, weight_sum.data()};
    const auto with_tiles = [&](auto bulk) {
      if (c.M <= 8) return run_int8<1, false, bulk.value>(c, input, seed);
      if (c.M <= 16) return run_int8<2, false, bulk.value>(c, input, seed);
      if (c.M <= 32) return run_int8<4, false, bulk.value>(c, input, seed);
      if (c.M <= 64) return run_int8<1, true, bulk.value>(c, input, seed);
      run_int8<2, true, bulk.value>(c, input, seed);
    };
    if (random.chance(0.5)) {
      with_tiles(std::true_type());
    } else {
      with_tiles(std::false_type());
    }
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.shape.rows; ++n) {
        double sum = 0;  // of multiples of 2^-4, exact
        for (int64_t k = 0; k < c.shape.cols; ++k) {
          sum += c.weight[size_t(n * c.shape.cols + k)] * double(x[m * c.shape.cols + k] - zero_point) *
                 double(x_scale[m]);
        }
        ASSERT_EQ(double(c.y[m * c.shape.rows + n]), sum) << m << ", " << n;
      }
    }
  }
}

// Half of NaN in x, nothing stored: still no output is left out, and the sums of other rows of x are not touched.
TEST(CudaSpmmFragment, NaNStaysInItsRowOfX) {
  test::Random random(3);
  Case c(random, Dtype::kFloat16, 16, 64, 64, 3);
  for (int64_t k = 0; k < 64; ++k) c.x.set(64 + k, NAN);
  run<Values16<Half>, 1, true>(c, 2, 1);
  for (int64_t n = 0; n < 64; ++n) {
    EXPECT_FALSE(std::isnan(c.y[n]));
    EXPECT_TRUE(std::isnan(c.y[64 + n]));
    EXPECT_FALSE(std::isnan(c.y[128 + n]));
  }
}

// Bytes that changed after they were checked: results are nonsense, but no access lies outside of a buffer.
TEST(CudaSpmmFragment, TamperedBytesAreNotFollowed) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    test::Random random(seed);
    Case c = random.chance(0.7) ? random_case(random, kFewRows) : random_case(random, kManyRows);
    if (c.shape.num_tiles() == 0) continue;
    for (int64_t i = 0; i < c.blob.size(); ++i) {
      if (random.chance(0.5)) c.blob[i] = 0xff;
    }
    const int64_t tile = random.integer(0, c.shape.num_tiles() - 1);
    switch (random.integer(0, 3)) {
      case 0:  // nonsense
        c.tile_ptr[tile] = int32_t(random.next());
        break;
      case 1:  // longer than a stage
        c.tile_ptr[tile] = 0;
        c.tile_ptr[tile + 1] = int32_t(c.blob.size() / kFragmentUnit);
        break;
      case 2:  // past the end
        c.tile_ptr[tile] = int32_t(c.blob.size() / kFragmentUnit);
        c.tile_ptr[tile + 1] = c.tile_ptr[tile] + kFragmentMaskBytes / kFragmentUnit;
        break;
      default:
        break;
    }
    if (random.chance(0.5)) c.block_ptr[random.integer(0, c.num_blocks)] = int32_t(random.next());
    if (random.chance(0.5)) c.row_block[0] = int32_t(random.next());
    with_values(c.dtype, c.shape.value_bits, [&](auto values) { run_any<decltype(values)>(c, random, seed); });
  }
}

TEST(CudaExpandFragment, GivesTheDenseWeight) {
  for (uint32_t seed = 0; seed < 15; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random, kFewRows);
    const FragmentArrays weight = c.arrays();
    Numbers dense = Numbers::unwritten(c.dtype, c.shape.rows * c.shape.cols, Guard::kAfter);
    const int64_t shared = (kStages - 1) * weight.stage_bytes + kFragmentReadBytes;
    with_values(c.dtype, c.shape.value_bits, [&](auto values) {
      run_grid({2, 1}, kWarp, shared, seed,
               [&] { fragment_expand<decltype(values)>(weight, static_cast<uint16_t*>(dense.data())); });
    });
    for (int64_t i = 0; i < dense.size(); ++i) {
      ASSERT_EQ(double(dense[i]), test::round_to(c.dtype, c.weight[size_t(i)])) << i;
    }
  }
}

}  // namespace
}  // namespace sparsecore::cuda
