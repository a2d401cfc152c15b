#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <variant>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "kernels/float_problem.h"
#include "numbers.h"
#include "oracle.h"
#include "packed.h"
#include "sparsecore/codebook.h"
#include "sparsecore/ops.h"

namespace sparsecore::test {
namespace {

using AnySpmm =
    AnyKernel<SpmmArgs, SpmmBlockArgs, SpmmPanelArgs, SpmmJitArgs, SpmmBitmapArgs, SpmmPlanesArgs, SpmmCodebookArgs>;

struct Shape {
  int64_t N = 1, K = 1;
  Layout layout = Layout::kRows;
  int64_t batch = 1, columns = 1;
  Fill fill = Fill::kTenth;
  Activation activation = Activation::kNone;
  Dtype dtype = Dtype::kFloat32;
  bool has_bias = false, has_residual = false;
  int64_t padding = 0;          // of leading dimensions
  double special_chance = 0.0;  // of NaN and infinities in x
  Packing packing = {};
  Guard guard = Guard::kAfter;
  uint64_t seed = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "seed " << shape.seed << ": N " << shape.N << ", K " << shape.K << ", "
      << (shape.layout == Layout::kRows ? "rows" : "columns") << ", batch " << shape.batch << ", columns "
      << shape.columns << ", padding " << shape.padding;
  print_options(out, shape);
  return out;
}

// A matrix of the two layouts inside a padded buffer that ends with its last element.
struct Placement {
  Layout layout;
  int64_t ld, batch_stride;

  Placement(const Shape& shape, int64_t features)
      : layout(shape.layout),
        ld((layout == Layout::kRows ? features : shape.columns) + shape.padding),
        batch_stride(layout == Layout::kRows ? 0 : features * ld + shape.padding) {}

  int64_t at(int64_t image, int64_t feature, int64_t column) const {
    return layout == Layout::kRows ? column * ld + feature : image * batch_stride + feature * ld + column;
  }
  int64_t size(const Shape& shape, int64_t features) const {
    const bool is_empty = shape.batch == 0 || shape.columns == 0 || features == 0;
    return is_empty ? 0 : at(shape.batch - 1, features - 1, shape.columns - 1) + 1;
  }
};

class Problem {
 public:
  explicit Problem(const Shape& shape) : Problem(shape, Random(shape.seed)) {}

  const Csr<float>& weight() const { return weight_; }
  float& x_at(int64_t image, int64_t k, int64_t column) { return x_[size_t(x_place_.at(image, k, column))]; }

  // Calls function(kernel, args, what its rows argument counts) with an output of its own.
  template <class Function>
  Numbers run_with(const AnySpmm& any, Function function) const {
    const Numbers x(shape_.dtype, x_, shape_.guard), residual(shape_.dtype, residual_, shape_.guard);
    Numbers y = Numbers::unwritten(shape_.dtype, y_place_.size(shape_, shape_.N), shape_.guard);
    with_packed(any, weight_, shape_.packing, shape_.guard, [&](const auto& kernel, auto& args, int64_t num_rows) {
      args.layout = shape_.layout;
      args.batch = shape_.batch;
      args.columns = shape_.columns;
      args.dtype = shape_.dtype;
      args.x = x.data();
      args.ldx = x_place_.ld;
      args.x_batch_stride = x_place_.batch_stride;
      args.y = y.data();
      args.ldy = y_place_.ld;
      args.y_batch_stride = y_place_.batch_stride;
      args.residual = shape_.has_residual ? residual.data() : nullptr;
      args.epilogue = epilogue();
      ASSERT_TRUE(kernel.supports(args));
      function(kernel, args, num_rows);
    });
    return y;
  }
  Numbers run(const AnySpmm& any) const {
    return run_with(any, [&](const auto& kernel, const auto& args, int64_t num_rows) {
      run_all(kernel, args, num_rows, shape_.guard);
    });
  }

  void check(const Numbers& y) const {
    std::vector<bool> is_output(static_cast<size_t>(y.size()));
    std::vector<Sum> sums(static_cast<size_t>(shape_.columns));
    for (int64_t image = 0; image < shape_.batch; ++image) {
      for (int64_t n = 0; n < shape_.N; ++n) {
        std::fill(sums.begin(), sums.end(), Sum{});
        for_each_entry(weight_, n, [&](int64_t k, float value) {
          for (int64_t c = 0; c < shape_.columns; ++c) {
            sums[static_cast<size_t>(c)].add(double(value), double(x_[size_t(x_place_.at(image, k, c))]));
          }
        });
        for (int64_t c = 0; c < shape_.columns; ++c) {
          const int64_t at = y_place_.at(image, n, c);
          is_output[static_cast<size_t>(at)] = true;
          Sum& sum = sums[static_cast<size_t>(c)];
          if (shape_.has_residual) sum.add(1.0, double(residual_[static_cast<size_t>(at)]));
          const Expected expected = expect_sum(sum, epilogue().bias_of(n), shape_.activation);
          ASSERT_TRUE(is_close(y, at, expected))
              << describe(y, at, expected) << " in image " << image << ", row " << n << ", column " << c;
        }
      }
    }
    for (int64_t at = 0; at < y.size(); ++at) {
      ASSERT_TRUE(is_output[static_cast<size_t>(at)] || y.is_unwritten(at)) << "padding of y written at " << at;
    }
  }

 private:
  Problem(const Shape& shape, Random random)
      : shape_(shape),
        x_place_(shape, shape.K),
        y_place_(shape, shape.N),
        weight_(
            with_whole_blocks(random_csr<float>(random, shape.N, shape.K, shape.fill), shape.packing.csr_block_rows)),
        x_(numbers(random, x_place_, shape.K)),
        residual_(numbers(random, y_place_, shape.has_residual ? shape.N : 0)),
        bias_(shape.has_bias ? shape.N : 0, shape.guard) {
    for (float& bias : bias_) bias = random.number();
    for (float& value : weight_.values) {
      value = static_cast<float>(round_to(shape.packing.value_dtype, double(value)));
      if (shape.packing.num_values > 0) value = one_of(value, shape.packing.num_values);
    }
    if (shape.packing.planes > 0) weight_ = with_signs(weight_, shape.packing.planes, random);
  }

  // Of so many numbers, none of them zero.
  static float one_of(float value, int64_t num_values) {
    const int64_t which = static_cast<int64_t>(std::fabs(value) * 1e3f) % num_values;
    return 0.37f * static_cast<float>(which % 2 == 0 ? which + 1 : -which);
  }

  // What lies in the padding is NaN: whoever reads it gets NaN into the result.
  std::vector<float> numbers(Random& random, const Placement& place, int64_t features) const {
    std::vector<float> result(static_cast<size_t>(place.size(shape_, features)), std::nanf(""));
    for (int64_t image = 0; image < shape_.batch; ++image) {
      for (int64_t k = 0; k < features; ++k) {
        for (int64_t c = 0; c < shape_.columns; ++c) {
          result[size_t(place.at(image, k, c))] = random_number(random, shape_.dtype, shape_.special_chance);
        }
      }
    }
    return result;
  }

  Epilogue epilogue() const { return {shape_.has_bias ? bias_.data() : nullptr, shape_.activation}; }

  Shape shape_;
  Placement x_place_, y_place_;
  Csr<float> weight_;
  std::vector<float> x_, residual_;
  Buffer<float> bias_;
};

class SpmmTest : public KernelTest<SpmmArgs, SpmmBlockArgs, SpmmPanelArgs, SpmmJitArgs, SpmmBitmapArgs, SpmmPlanesArgs,
                                   SpmmCodebookArgs> {
 protected:
  void check(const Shape& wanted) {
    const Shape shape = fitted(wanted);
    const Case trace(shape);
    const Problem problem(shape);
    problem.check(problem.run(any_kernel()));
  }

  template <class Args>
  bool is_of() const {
    return std::holds_alternative<Kernel<Args>>(any_kernel().row);
  }

  // Block CSR has whole blocks of rows; code has a form for products and one for 1x1 convolutions; bitmaps and
  // codebooks have one layout, bitmaps values of any dtype, codebooks few different ones; one bit plane has no zeros.
  Shape fitted(Shape shape) const {
    Random random(shape.seed);
    if (is_of<SpmmBitmapArgs>() || is_of<SpmmCodebookArgs>()) {
      shape.layout = Layout::kRows;
      shape.columns *= shape.batch;
      shape.batch = 1;
    }
    if (is_of<SpmmBitmapArgs>()) shape.packing.value_dtype = random.pick(kAllDtypes);
    if (is_of<SpmmCodebookArgs>()) {
      shape.packing.num_values = random.pick<int64_t>({1, 3, 15, 255});
      shape.packing.gap_bits = random.integer(1, 8);
    }
    if (is_of<SpmmJitArgs>()) shape.packing.kernel_h = shape.packing.kernel_w = random.integer(0, 1);
    if (is_of<SpmmPlanesArgs>()) shape.packing.planes = shape.fill == Fill::kFull && random.chance(0.8) ? 1 : 2;
    const int64_t R = random_csr_block_rows(any_kernel(), random);
    shape.packing.csr_block_rows = R;
    shape.N = (shape.N + R - 1) / R * R;
    return shape;
  }

  static Packing random_packing(Random& random) {
    return {.block_rows = random.pick<int64_t>({1, 2, 8, 64, 256}),
            .panel_cols = random.pick<int64_t>({1, 5, 16, 64, 255})};
  }
};
SPARSECORE_TEST_EACH_KERNEL(SpmmTest, spmm_kernels(), spmm_block_kernels(), spmm_panel_kernels(), spmm_jit_kernels(),
                            spmm_bitmap_kernels(), spmm_planes_kernels(), spmm_codebook_kernels());

// Around vectors of 1, 4, 8 and 16 lanes, around tiles of 12 vectors of them, and past two such tiles.
constexpr int64_t kColumns[] = {0,  1,  2,  3,  4,  5,  7,  8,  9,   11,  12,  13,  15,  16,  17,
                                25, 47, 48, 49, 63, 95, 96, 97, 191, 192, 193, 199, 383, 384, 385};
constexpr int64_t kFeatures[] = {1, 7, 8, 9, 33};
constexpr int64_t kReduced[] = {0, 1, 7, 8, 9, 300, 2000};

TEST_P(SpmmTest, AroundTheTile) {
  const double most_work = any_kernel().isa() == Isa::kScalar ? 1e4 : 4e4;
  uint64_t seed = 1000;
  for (const int64_t columns : kColumns) {
    for (const int64_t K : kReduced) {
      for (const int64_t N : kFeatures) {
        for (const Fill fill : kAllFills) {
          for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
            Random random(++seed);
            // Slow and much alike.
            if (!random.chance(most_work / double(N * K * columns + 1))) continue;
            Shape shape{.N = N, .K = K, .layout = layout, .columns = columns, .fill = fill};
            shape.seed = seed;
            randomize_options(shape, random);
            shape.padding = random.chance(0.5) ? 0 : random.integer(1, 9);
            shape.packing = random_packing(random);
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

// Odd images, so that a tile ends inside one and begins in the next, or spans several.
TEST_P(SpmmTest, TilesThatStraddleImages) {
  uint64_t seed = 20000;
  for (const int64_t batch : {0, 2, 3, 5, 40}) {
    for (const int64_t columns : {1, 3, 7, 8, 9, 25, 49, 97}) {
      for (const int64_t K : {0, 1, 9, 40}) {
        for (const int64_t padding : {0, 5}) {
          for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
            Random random(++seed);
            Shape shape{.N = 9, .K = K, .layout = Layout::kColumns, .batch = batch, .columns = columns};
            shape.fill = random.pick(kAllFills);
            randomize_options(shape, random);
            shape.padding = padding;
            shape.packing = random_packing(random);
            shape.guard = guard;
            shape.seed = seed;
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

// More rows than any chunk of sums that a panel kernel keeps in cache.
TEST_P(SpmmTest, ManyRows) {
  uint64_t seed = 25000;
  for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
    for (const int64_t columns : {8, 13, 90}) {
      for (const int64_t block_rows : {64, 256}) {
        Shape shape{.N = 5003, .K = 30, .layout = layout, .columns = columns, .fill = Fill::kTenth};
        shape.packing = {.block_rows = block_rows, .panel_cols = 10};
        shape.seed = ++seed;
        shape.has_residual = seed % 2 == 0;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// Panels, blocks and groups of them in generated code, and offsets of values and activations of more than a byte.
TEST_P(SpmmTest, ManyColumnsOfTheWeight) {
  uint64_t seed = 27000;
  for (const int64_t N : {27, 28, 29, 57, 260}) {
    for (const int64_t K : {127, 128, 129, 255, 256, 257, 513, 1030}) {
      for (const Fill fill : kAllFills) {
        Random random(++seed);
        Shape shape{.N = N, .K = K, .layout = random.pick({Layout::kRows, Layout::kColumns}), .fill = fill};
        shape.columns = random.integer(1, 40);
        randomize_options(shape, random);
        shape.packing = random_packing(random);
        shape.seed = seed;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

// Around blocks of 16 outputs, alone and four at once, for the rows of activations that tiles of 1 to 8 are made for.
TEST_P(SpmmTest, AroundBlocksOfOutputs) {
  uint64_t seed = 43000;
  for (int64_t columns = 0; columns <= 20; ++columns) {
    for (const int64_t N : {1, 15, 16, 17, 31, 33, 63, 64, 65, 80, 129}) {
      Random random(++seed);
      Shape shape{.N = N, .K = random.pick<int64_t>({0, 1, 3, 50}), .columns = columns, .fill = random.pick(kAllFills)};
      randomize_options(shape, random);
      shape.padding = random.chance(0.5) ? 0 : random.integer(1, 9);
      shape.packing = random_packing(random);
      shape.seed = seed;
      check(shape);
      if (HasFailure()) return;
    }
  }
}

// Every stored dtype with and without a residual: rows of activations one by one past two vectors of 16, and the maps
// of networks.
TEST_P(SpmmTest, EveryDtypeWithAndWithoutResidual) {
  const auto sweep = [&](Layout layout, int64_t batch, int64_t columns, int64_t N, uint64_t seed) {
    for (const Dtype dtype : kAllDtypes) {
      for (const bool has_residual : {false, true}) {
        Random random(++seed);
        Shape shape{.N = N, .K = random.pick<int64_t>({1, 2, 5, 16, 17, 300})};
        randomize_options(shape, random);
        shape.layout = layout;
        shape.batch = batch;
        shape.columns = columns;
        shape.fill = random.pick({Fill::kHalf, Fill::kRagged});
        shape.packing = random_packing(random);
        shape.padding = random.chance(0.7) ? 0 : random.integer(1, 9);
        shape.dtype = dtype;
        shape.has_residual = has_residual;
        shape.seed = seed;
        check(shape);
        if (HasFailure()) return;
      }
    }
  };
  uint64_t seed = 45000;
  for (int64_t M = 1; M <= 40; ++M) {
    for (const int64_t N : {int64_t(8), M}) sweep(Layout::kRows, 1, M, N, seed += 10);
    if (HasFailure()) return;
  }
  for (const int64_t P : {1, 2, 7, 49, 50, 97}) {
    for (const int64_t batch : {1, 2}) {
      for (const int64_t N : {1, 8, 21, 40}) sweep(Layout::kColumns, batch, P, N, seed += 10);
      if (HasFailure()) return;
    }
  }
}

// A weight so wide that a tile of full width would not fit in cache, and one that no tile fits.
TEST_P(SpmmTest, NarrowTilesOfWideWeights) {
  uint64_t seed = 30000;
  for (const int64_t K : {1100, 3500, 13000}) {
    for (const int64_t columns : {1, 8, 9, 31, 32, 33, 70}) {
      for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
        Shape shape{.N = 5, .K = K, .layout = layout, .columns = columns, .fill = Fill::kTenth};
        shape.seed = ++seed;
        shape.padding = static_cast<int64_t>(seed % 2);
        shape.dtype = kAllDtypes[seed % 3];
        shape.has_residual = seed % 5 == 0;
        check(shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(SpmmTest, EveryActivationWithAndWithoutBias) {
  uint64_t seed = 40000;
  for (const Activation activation : kAllActivations) {
    for (const bool has_bias : {false, true}) {
      for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
        for (const int64_t columns : {1, 5, 8, 40, 97}) {
          for (const int64_t batch : {1, 2}) {
            if (layout == Layout::kRows && batch > 1) continue;
            Shape shape{.N = 33, .K = 40, .layout = layout, .batch = batch, .columns = columns, .fill = Fill::kRagged};
            shape.activation = activation;
            shape.has_bias = has_bias;
            shape.seed = ++seed;
            check(shape);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_P(SpmmTest, NanAndInfinityInX) {
  uint64_t seed = 50000;
  for (const Activation activation : kAllActivations) {
    for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
      for (const int64_t columns : {1, 3, 8, 20, 97}) {
        for (const Fill fill : {Fill::kSingle, Fill::kTenth, Fill::kHalf, Fill::kRagged}) {
          Shape shape{.N = 17, .K = 50, .layout = layout, .columns = columns, .fill = fill};
          shape.activation = activation;
          shape.special_chance = 0.03;
          shape.has_bias = seed % 2 == 0;
          shape.dtype = kAllDtypes[seed % 3];
          shape.has_residual = seed % 7 < 3;
          shape.padding = static_cast<int64_t>(seed % 3);
          shape.seed = ++seed;
          check(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

// 0 * NaN of an entry that is not stored must be skipped, not computed.
TEST_P(SpmmTest, MissingEntriesSkipNan) {
  for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
    for (const int64_t columns : {1, 7, 8, 100}) {
      Shape shape{.N = 11, .K = 20, .layout = layout, .columns = columns, .fill = Fill::kTenth, .seed = 7};
      shape = fitted(shape);
      const Case trace(shape);
      Problem problem(shape);
      const std::vector<int32_t>& used = problem.weight().col_idx;
      int64_t num_unused = 0;
      for (int64_t k = 0; k < shape.K; ++k) {
        if (std::find(used.begin(), used.end(), k) != used.end()) continue;
        ++num_unused;
        for (int64_t c = 0; c < columns; ++c) problem.x_at(0, k, c) = std::nanf("");
      }
      ASSERT_GT(num_unused, 0);
      const Numbers y = problem.run(any_kernel());
      for (int64_t i = 0; i < y.size(); ++i) ASSERT_TRUE(std::isfinite(y[i]));
      problem.check(y);
      if (HasFailure()) return;
    }
  }
}

// One NaN in x reaches its own column only.
TEST_P(SpmmTest, NanStaysInItsColumn) {
  for (const Layout layout : {Layout::kRows, Layout::kColumns}) {
    Shape shape{.N = 9, .K = 12, .layout = layout, .columns = 29, .fill = Fill::kFull, .seed = 8};
    shape = fitted(shape);
    for (int64_t column = 0; column < shape.columns; ++column) {
      const Case trace(shape, ", NaN in column ", column);
      Problem problem(shape);
      problem.x_at(0, column % shape.K, column) = std::nanf("");
      problem.check(problem.run(any_kernel()));
      if (HasFailure()) return;
    }
  }
}

TEST_P(SpmmTest, AnySplitGivesTheSameBits) {
  for (uint64_t seed = 60000; seed < 60300; ++seed) {
    Random random(seed);
    Shape shape{.N = random.integer(1, 40), .K = random.pick<int64_t>({1, 9, 60, 600})};
    shape.layout = random.chance(0.5) ? Layout::kRows : Layout::kColumns;
    shape.batch = shape.layout == Layout::kRows ? 1 : random.integer(1, 4);
    shape.columns = random.integer(1, 150);
    shape.fill = random.pick(kAllFills);
    randomize_options(shape, random);
    shape.padding = random.integer(0, 4);
    shape.packing = {.block_rows = random.pick<int64_t>({1, 2, 8}), .panel_cols = random.pick<int64_t>({5, 16, 64})};
    shape.seed = seed;
    shape = fitted(shape);
    const Case trace(shape);
    check_splits(Problem(shape), any_kernel(), random);
    if (HasFailure()) return;
  }
}

TEST_P(SpmmTest, NothingToComputeMeansNoTiles) {
  const Shape shapes[] = {{.N = 3, .K = 3, .layout = Layout::kRows, .columns = 0},
                          {.N = 3, .K = 3, .layout = Layout::kColumns, .columns = 0},
                          {.N = 3, .K = 3, .layout = Layout::kColumns, .batch = 0, .columns = 5}};
  for (const Shape& wanted : shapes) {
    const Shape shape = fitted(wanted);
    const Case trace(shape);
    Problem(shape).run_with(any_kernel(), [](const auto& kernel, const auto& args, int64_t) {
      EXPECT_EQ(kernel.num_tiles(args), 0);
      EXPECT_GE(kernel.scratch_bytes(args), 0);
    });
  }
}

}  // namespace
}  // namespace sparsecore::test
