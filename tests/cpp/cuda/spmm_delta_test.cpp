// The kernel of the delta format on emulated threads, against float64 sums over the stored entries.
#include "cuda/spmm_delta.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/emulation.h"
#include "numbers.h"
#include "oracle.h"
#include "pack/delta.h"
#include "random.h"
#include "sparsecore/pack.h"

namespace sparsecore::cuda {
namespace {

using test::Buffer;
using test::Guard;
using test::Numbers;

// A weight as entries and packed, activations, and room for the results.
struct Case {
  Case(test::Random& random, Dtype number, bool int8, int64_t n, int64_t k, int64_t m)
      : shape{n, k},
        dtype(number),
        is_int8(int8),
        M(m),
        x(number, m * k, Guard::kAfter),
        residual(number, m * n, Guard::kAfter),
        y(Numbers::unwritten(number, m * n, Guard::kAfter)),
        bias(n, Guard::kAfter),
        scale(n, Guard::kAfter),
        activation(random.pick(test::kAllActivations)),
        quad_ptr(shape.units() + 1, Guard::kAfter),
        num_blocks(random.pick<int64_t>({1, 2, 3, 7, 40})),
        block_ptr(num_blocks + 1, Guard::kAfter) {
    for (float& s : scale) s = random.pick({0.25f, 0.5f, 1.0f, 2.0f});
    for (float& b : bias) b = random.number();
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, rounded(random));
    for (int64_t i = 0; i < residual.size(); ++i) residual.set(i, rounded(random));
    if (is_int8) {
      pack<int8_t>(random);
    } else {
      pack<uint16_t>(random);
    }
  }

  DeltaArrays arrays() const {
    DeltaArrays result;
    result.rows = shape.rows;
    result.cols = shape.cols;
    result.quad_ptr = quad_ptr.data();
    result.codes = codes.data();
    result.values = values.data();
    result.quads = codes.size() / kDeltaQuad;
    result.block_ptr = block_ptr.data();
    result.num_blocks = num_blocks;
    result.scale = is_int8 ? scale.data() : nullptr;
    return result;
  }

  void expect_right() const {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < shape.rows; ++n) {
        test::Sum sum;
        for (auto i = size_t(row_ptr[size_t(n)]); i < size_t(row_ptr[size_t(n) + 1]); ++i) {
          sum.add(weight[i], double(x[m * shape.cols + col_idx[i]]));
        }
        const int64_t at = m * shape.rows + n;
        sum.add(1.0, double(residual[at]));
        sum.terms += 2 + shape.panels();  // scale, sums of panels
        const test::Expected expected = test::expect_sum(sum, bias[n], activation);
        ASSERT_TRUE(test::is_close(y, at, expected)) << test::describe(y, at, expected) << " at " << m << ", " << n;
      }
    }
  }

  DeltaShape shape;
  Dtype dtype;
  bool is_int8;
  int64_t M;
  std::vector<int32_t> row_ptr{0}, col_idx;
  std::vector<double> weight;
  Numbers x, residual, y;
  Buffer<float> bias, scale;
  Activation activation;
  Buffer<int32_t> quad_ptr;
  int64_t num_blocks;
  Buffer<int32_t> block_ptr;
  Buffer<uint8_t> codes, values;

 private:
  float rounded(test::Random& random) const { return static_cast<float>(test::round_to(dtype, random.number())); }

  template <class T>
  void pack(test::Random& random) {
    std::vector<T> numbers;
    for (int64_t n = 0; n < shape.rows; ++n) {
      const int64_t widest = random.pick<int64_t>({2, 20, 700, 100'000});
      for (int64_t k = random.integer(0, widest); k < shape.cols; k += random.integer(1, widest)) {
        col_idx.push_back(int32_t(k));
        if constexpr (std::is_same_v<T, uint16_t>) {
          const float value = rounded(random);
          numbers.push_back(test::encode(dtype, double(value)));
          weight.push_back(double(value));
        } else {
          numbers.push_back(T(random.integer(-128, 127)));
          weight.push_back(double(numbers.back()) * double(scale[n]));
        }
      }
      row_ptr.push_back(int32_t(numbers.size()));
    }
    const CsrView<T> csr{shape.rows,     shape.cols,     int64_t(numbers.size()),
                         row_ptr.data(), col_idx.data(), numbers.data()};
    const Range all{0, shape.rows};
    count_delta(csr, shape, all, quad_ptr.data());
    const int64_t size = running_sum(quad_ptr.data(), shape.units()) * kDeltaQuad;
    std::vector<uint8_t> bytes(size_t(size), 0);
    std::vector<T> stored(static_cast<size_t>(size));
    fill_delta(csr, shape, all, quad_ptr.data(), bytes.data(), stored.data());
    put(codes, bytes.data(), size, 4);
    put(values, stored.data(), size * int64_t(sizeof(T)), 4 * sizeof(T));
    split_delta(quad_ptr.data(), shape.units(), num_blocks, block_ptr.data());
  }

  static void put(Buffer<uint8_t>& to, const void* from, int64_t bytes, int64_t alignment) {
    Buffer<uint8_t> copy(bytes, Guard::kAfter, alignment);
    if (bytes > 0) std::memcpy(copy.data(), from, size_t(bytes));
    std::destroy_at(&to);
    std::construct_at(&to, std::move(copy));
  }
};

// As spmm_delta.cu launches it.
template <class X, class Values, int kTokens>
void run(Case& c, int warps, uint32_t seed) {
  const DeltaArrays weight = c.arrays();
  const bool has_partial = c.shape.panels() != 1;
  Buffer<float> partial = test::unwritten_output(c.shape.panels() * c.M * c.shape.rows, Guard::kAfter);
  const auto* x = static_cast<const uint16_t*>(c.x.data());
  const SpmmOutput out{c.y.data(), c.residual.data(), c.bias.data(), c.activation};
  run_grid(
      {c.num_blocks, (c.M + kTokens - 1) / kTokens}, warps * kWarp, delta_shared_bytes(c.shape.cols, kTokens), seed,
      [&] { spmm_delta_multiply<X, Values, kTokens>(weight, x, c.M, has_partial ? partial.data() : nullptr, out); });
  if (has_partial) run_grid({2, 1}, kWarp, 0, seed, [&] { spmm_delta_finish<X>(weight, c.M, partial.data(), out); });
}

// Calls function(number type, values type) with those of a case.
template <class Function>
void with_types(const Case& c, Function function) {
  const auto with_number = [&](auto number) {
    if (c.is_int8) return function(number, DeltaValues8{});
    function(number, DeltaValues16<decltype(number)>{});
  };
  if (c.dtype == Dtype::kFloat16) return with_number(Half{});
  with_number(Brain{});
}

void run_any(Case& c, test::Random& random, uint32_t seed) {
  const int warps = random.pick({1, 2, 4});
  with_types(c, [&](auto number, auto values) {
    using X = decltype(number);
    using Values = decltype(values);
    if (c.M == 1) return run<X, Values, 1>(c, warps, seed);
    if (c.M == 2) return run<X, Values, 2>(c, warps, seed);
    if (c.M <= 4) return run<X, Values, 4>(c, warps, seed);
    run<X, Values, kDeltaTokens>(c, warps, seed);
  });
}

Case random_case(test::Random& random) {
  const Dtype dtype = random.pick({Dtype::kFloat16, Dtype::kBFloat16});
  return Case(random, dtype, random.chance(0.5), random.pick<int64_t>({1, 2, 7, 33}),
              random.pick<int64_t>({0, 1, 100, 1000, 4096, 4097, 9000}), random.pick<int64_t>({1, 2, 3, 4, 5, 8, 11}));
}

TEST(CudaSpmmDelta, EqualsFloat64) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random);
    run_any(c, random, seed);
    c.expect_right();
    if (HasFatalFailure()) return;
  }
}

TEST(CudaExpandDelta, GivesTheDenseWeight) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    Case c = random_case(random);
    const DeltaArrays weight = c.arrays();
    Numbers dense(c.dtype, c.shape.rows * c.shape.cols, Guard::kAfter);
    for (int64_t i = 0; i < dense.size(); ++i) dense.set(i, 0.0f);
    auto* to = static_cast<uint16_t*>(dense.data());
    with_types(c, [&](auto number, auto values) {
      run_grid({3, 1}, 2 * kWarp, 0, seed, [&] { delta_expand<decltype(number), decltype(values)>(weight, to); });
    });
    std::vector<double> expected(size_t(dense.size()), 0.0);
    for (int64_t n = 0; n < c.shape.rows; ++n) {
      for (auto i = size_t(c.row_ptr[size_t(n)]); i < size_t(c.row_ptr[size_t(n) + 1]); ++i) {
        expected[size_t(n * c.shape.cols + c.col_idx[i])] = test::round_to(c.dtype, c.weight[i]);
      }
    }
    for (int64_t i = 0; i < dense.size(); ++i) ASSERT_EQ(double(dense[i]), expected[size_t(i)]) << i;
  }
}

// NaN in a column of x reaches the rows that store an entry there, and no other one.
TEST(CudaSpmmDelta, MissingEntriesAreNotMultiplied) {
  test::Random random(3);
  Case c(random, Dtype::kFloat16, false, 40, 5000, 3);
  const int64_t col = c.col_idx[c.col_idx.size() / 2];
  c.x.set(5000 + col, NAN);
  c.activation = Activation::kNone;
  run<Half, DeltaValues16<Half>, 4>(c, 2, 1);
  int reached = 0;
  for (int64_t n = 0; n < 40; ++n) {
    bool is_stored = false;
    for (auto i = size_t(c.row_ptr[size_t(n)]); i < size_t(c.row_ptr[size_t(n) + 1]); ++i) {
      is_stored |= c.col_idx[i] == col;
    }
    reached += is_stored;
    EXPECT_FALSE(std::isnan(c.y[n]));
    EXPECT_EQ(std::isnan(c.y[40 + n]), is_stored) << n;
    EXPECT_FALSE(std::isnan(c.y[80 + n]));
  }
  EXPECT_GT(reached, 0);
  EXPECT_LT(reached, 40);
}

// Nor are columns that only skips go through: NaN wherever nothing is stored.
TEST(CudaSpmmDelta, SkippedColumnsAreNotRead) {
  int tested = 0;
  for (uint32_t seed = 0; seed < 100; ++seed) {
    test::Random random(seed);
    Case c(random, Dtype::kBFloat16, false, 1, 4096, 1);
    if (c.col_idx.size() > 20 || c.col_idx.empty() || c.col_idx[0] < 300) continue;
    for (int64_t k = 0; k < 4096; ++k) {
      if (std::find(c.col_idx.begin(), c.col_idx.end(), k) == c.col_idx.end()) c.x.set(k, NAN);
    }
    run<Brain, DeltaValues16<Brain>, 1>(c, 1, 1);
    c.expect_right();
    ++tested;
  }
  EXPECT_GT(tested, 0);
}

// Arrays that changed after they were checked: results are nonsense, but no access lies outside of a buffer.
TEST(CudaSpmmDelta, TamperedArraysAreNotFollowed) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    test::Random random(seed);
    Case c = random_case(random);
    for (uint8_t& code : c.codes) {
      if (random.chance(0.3)) code = static_cast<uint8_t>(random.next());
    }
    if (random.chance(0.5)) c.quad_ptr[random.integer(0, c.shape.units())] = int32_t(random.next());
    if (random.chance(0.5)) c.block_ptr[random.integer(0, c.num_blocks)] = int32_t(random.next());
    run_any(c, random, seed);
  }
}

}  // namespace
}  // namespace sparsecore::cuda
