// Activations alone, through the epilogue of spmm: a weight of ones, or x of ones, makes the sum an exact number.
// The int8 kernels and conv2d share the text; their own tests run every activation on their own sums.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "oracle.h"
#include "packed.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class ActivationTest : public KernelTest<SpmmArgs, SpmmPanelArgs> {
 protected:
  Buffer<float> run(const Csr<float>& weight, const std::vector<float>& x_columns, Epilogue epilogue) {
    const Buffer<float> x(x_columns, Guard::kAfter);
    Buffer<float> y = unwritten_output(weight.rows * x.size(), Guard::kAfter);
    with_packed(any_kernel(), weight, {}, Guard::kAfter, [&](const auto& kernel, auto& args, int64_t num_rows) {
      args.layout = Layout::kColumns;
      args.columns = args.ldx = args.ldy = x.size();
      args.x = x.data();
      args.y = y.data();
      args.epilogue = epilogue;
      run_all(kernel, args, num_rows, Guard::kAfter);
    });
    return y;
  }

  // y = activation(1 * number) over a tile of columns.
  Buffer<float> on_columns(const std::vector<float>& numbers, Activation activation) {
    return run({1, 1, {0, 1}, {0}, {1.0f}}, numbers, {nullptr, activation});
  }

  // y = activation(number * 1) over the rows of a weight with one column, as dot products.
  Buffer<float> on_rows(const std::vector<float>& numbers, Activation activation) {
    Csr<float> weight{static_cast<int64_t>(numbers.size()), 1, {}, {}, numbers};
    weight.col_idx.assign(numbers.size(), 0);
    for (size_t n = 0; n <= numbers.size(); ++n) weight.row_ptr.push_back(static_cast<int32_t>(n));
    return run(weight, {1.0f}, {nullptr, activation});
  }

  void check(const std::vector<float>& numbers) {
    for (const Activation activation : kAllActivations) {
      const Case trace("activation ", activation_name(activation));
      const Buffer<float> columns = on_columns(numbers, activation), rows = on_rows(numbers, activation);
      for (size_t i = 0; i < numbers.size(); ++i) {
        const Expected expected = expect_activated(double(numbers[i]), activation);
        for (const float got : {columns[int64_t(i)], rows[int64_t(i)]}) {
          ASSERT_TRUE(is_close(got, expected)) << describe(got, expected) << " for " << numbers[i];
        }
      }
    }
  }
};
SPARSECORE_TEST_EACH_KERNEL(ActivationTest, spmm_kernels(), spmm_panel_kernels());

TEST_P(ActivationTest, OrdinaryNumbers) {
  std::vector<float> numbers;
  for (int i = -30000; i <= 30000; ++i) numbers.push_back(float(i) / 1500.0f);  // -20 .. 20
  for (int i = -4000; i <= 4000; ++i) numbers.push_back(float(i) / 20.0f);      // -200 .. 200
  check(numbers);
}

// Knees of the piecewise functions, ends of exp's range, and where exp2's integer part steps.
TEST_P(ActivationTest, NeighboursOfTheKnees) {
  std::vector<float> numbers;
  const auto add_around = [&](float knee) {
    float below = knee, above = knee;
    for (int i = 0; i < 8; ++i) {
      numbers.insert(numbers.end(), {below, above, -below, -above});
      below = std::nextafterf(below, -kInf);
      above = std::nextafterf(above, kInf);
    }
  };
  for (const float knee : {0.0f, 1.0f, 3.0f, 6.0f, 87.0f, 88.0f, 88.7228f, 103.97f, 104.0f, 9.327f, 13.19f})
    add_around(knee);
  for (int step = 1; step < 250; ++step) {
    add_around(float(step) * 0.34657359f);                    // exp of multiples of ln(2) / 2
    add_around(std::sqrt(float(step) * 2.0f * 0.34657359f));  // the same inside erf
  }
  check(numbers);
}

TEST_P(ActivationTest, SpecialNumbers) {
  using Limits = std::numeric_limits<float>;
  check({0.0f, -0.0f, Limits::denorm_min(), -Limits::denorm_min(), Limits::min(), -Limits::min(), Limits::max(),
         -Limits::max(), 1e30f, -1e30f, 1e-40f, -1e-40f, Limits::max() / 6.0f, Limits::max() / 2.0f, kInf, -kInf,
         Limits::quiet_NaN(), -Limits::quiet_NaN()});
}

TEST_P(ActivationTest, AnyFloatAtAll) {
  Random random(1);
  std::vector<float> numbers(50000);
  for (float& number : numbers) number = random.any_float();
  check(numbers);
}

// Bias is added before the activation, and a sum of an empty row is the bias alone.
TEST_P(ActivationTest, BiasComesFirst) {
  const float bias[] = {-3.0f, 7.0f};
  const double sums[] = {-1.0, -11.0, 7.0, 7.0};
  for (const Activation activation : kAllActivations) {
    const Buffer<float> y = run({2, 1, {0, 1, 1}, {0}, {2.0f}}, {1.0f, -4.0f}, {bias, activation});
    for (int i = 0; i < 4; ++i) {
      const Expected expected = expect_activated(sums[i], activation);
      EXPECT_TRUE(is_close(y[i], expected)) << describe(y[i], expected) << ", " << activation_name(activation);
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
