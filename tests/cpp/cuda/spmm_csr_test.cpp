// The CUDA kernels' text on emulated threads, against float64.
#include "cuda/spmm_csr.h"

#include <gtest/gtest.h>

#include <vector>

#include "csr.h"
#include "numbers.h"
#include "oracle.h"
#include "random.h"

namespace sparsecore::cuda {
namespace {

using test::Buffer;
using test::Guard;
using test::Numbers;

// A weight, activations and what to add, in guarded memory.
struct Case {
  Case(test::Random& random, Dtype x_dtype, Dtype value_dtype)
      : csr(test::random_csr<float>(random, random.pick<int64_t>({1, 3, 5, 9}), random.pick<int64_t>({1, 7, 40, 90}),
                                    random.pick(test::kAllFills))),
        row_ptr(csr.row_ptr, Guard::kAfter),
        col_idx(csr.col_idx, Guard::kAfter),
        values(value_dtype, csr.nnz(), Guard::kAfter),
        batch(random.integer(1, 2)),
        columns(random.pick<int64_t>({1, 2, 7, 8, 9, 150})),
        layout(random.chance(0.5) ? Layout::kRows : Layout::kColumns),
        activation(random.pick(test::kAllActivations)),
        x(x_dtype, batch * columns * csr.cols, Guard::kAfter),
        residual(x_dtype, batch * columns * csr.rows, Guard::kAfter),
        bias(csr.rows, Guard::kAfter),
        y(Numbers::unwritten(x_dtype, residual.size(), Guard::kAfter)) {
    if (layout == Layout::kRows) columns *= batch, batch = 1;
    for (int64_t i = 0; i < csr.nnz(); ++i) {
      values.set(i, static_cast<float>(test::round_to(value_dtype, random.number())));
    }
    // Numbers beside stored entries only: NaN elsewhere must not be touched.
    for (int64_t i = 0; i < x.size(); ++i) {
      x.set(i, static_cast<float>(test::round_to(x_dtype, random.number_or_special(0.02))));
    }
    for (int64_t i = 0; i < residual.size(); ++i) {
      residual.set(i, static_cast<float>(test::round_to(x_dtype, random.number())));
    }
    for (float& b : bias) b = random.number();
  }

  CsrArrays arrays() const {
    return {csr.rows, csr.cols, csr.nnz(), row_ptr.data(), col_idx.data(), values.data(), values.dtype()};
  }
  SpmmOutput output() { return {y.data(), residual.data(), bias.data(), activation}; }

  int64_t x_at(int64_t image, int64_t column, int64_t k) const {
    return layout == Layout::kRows ? column * csr.cols + k : (image * csr.cols + k) * columns + column;
  }
  int64_t y_at(int64_t image, int64_t column, int64_t n) const {
    return layout == Layout::kRows ? column * csr.rows + n : (image * csr.rows + n) * columns + column;
  }

  void expect_right() const {
    for (int64_t image = 0; image < batch; ++image) {
      for (int64_t column = 0; column < columns; ++column) {
        for (int64_t n = 0; n < csr.rows; ++n) {
          test::Sum sum;
          for (int64_t i = csr.row_ptr[size_t(n)]; i < csr.row_ptr[size_t(n) + 1]; ++i) {
            sum.add(double(values[i]), double(x[x_at(image, column, csr.col_idx[size_t(i)])]));
          }
          const int64_t at = y_at(image, column, n);
          sum.add(1.0, double(residual[at]));
          const test::Expected expected = test::expect_sum(sum, bias[n], activation);
          ASSERT_TRUE(test::is_close(y, at, expected)) << test::describe(y, at, expected) << " at " << at;
        }
      }
    }
  }

  test::Csr<float> csr;
  Buffer<int32_t> row_ptr, col_idx;
  Numbers values;
  int64_t batch, columns;
  Layout layout;
  Activation activation;
  Numbers x, residual;
  Buffer<float> bias;
  Numbers y;
};

template <class X, class Value>
void run(Case& c, uint32_t seed) {
  run_grid({1, 2}, kCsrThreads, 0, seed, [&] {
    if (c.layout == Layout::kRows) {
      spmm_csr_rows<X, Value>(c.arrays(), c.x.data(), c.columns, c.output());
    } else {
      spmm_csr_columns<X, Value>(c.arrays(), c.x.data(), c.batch, c.columns, c.output());
    }
  });
}

TEST(CudaSpmmCsr, EqualsFloat64) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(seed);
    test::Random random(seed);
    const Dtype x = random.pick(test::kAllDtypes), value = random.pick(test::kAllDtypes);
    Case c(random, x, value);
    if (x == Dtype::kFloat32 && value == Dtype::kFloat32) run<Float32, Float32>(c, seed);
    if (x == Dtype::kFloat32 && value == Dtype::kFloat16) run<Float32, Half>(c, seed);
    if (x == Dtype::kFloat32 && value == Dtype::kBFloat16) run<Float32, Brain>(c, seed);
    if (x == Dtype::kFloat16 && value == Dtype::kFloat32) run<Half, Float32>(c, seed);
    if (x == Dtype::kFloat16 && value == Dtype::kFloat16) run<Half, Half>(c, seed);
    if (x == Dtype::kFloat16 && value == Dtype::kBFloat16) run<Half, Brain>(c, seed);
    if (x == Dtype::kBFloat16 && value == Dtype::kFloat32) run<Brain, Float32>(c, seed);
    if (x == Dtype::kBFloat16 && value == Dtype::kFloat16) run<Brain, Half>(c, seed);
    if (x == Dtype::kBFloat16 && value == Dtype::kBFloat16) run<Brain, Brain>(c, seed);
    c.expect_right();
  }
}

// Arrays that changed after they were checked: no access outside of them, whatever they hold.
TEST(CudaSpmmCsr, TamperedArraysAreNotFollowed) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    test::Random random(seed);
    Case c(random, Dtype::kFloat32, Dtype::kFloat32);
    for (int32_t& i : c.row_ptr) i = static_cast<int32_t>(random.next());
    for (int32_t& i : c.col_idx) i = static_cast<int32_t>(random.next());
    run<Float32, Float32>(c, seed);
  }
}

}  // namespace
}  // namespace sparsecore::cuda
