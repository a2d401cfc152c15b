// Bytes x 4-bit weights with group scales: every kernel on every packing that it supports, to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "harness.h"
#include "packed_int4.h"

namespace sparsecore::test {
namespace {

class LookupInt4Test : public KernelTest<LookupInt4Args> {};
SPARSECORE_TEST_EACH_KERNEL(LookupInt4Test, lookup_int4_kernels());

enum class Extreme { kNone, kLargest, kSmallest };

struct Shape {
  int64_t N, K, images = 1, pixels = 1;
  double density = 0.4;
  Extreme extreme = Extreme::kNone;
  int32_t zero_point = 128;
  Layout layout = Layout::kRows;
  bool has_bias = true, has_residual = false, has_places = false;
  uint64_t seed = 0;
};
std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << "seed " << shape.seed << ": " << shape.N << "x" << shape.K << ", " << shape.images << "x"
             << shape.pixels << " positions, density " << shape.density << ", zero point " << shape.zero_point
             << (shape.layout == Layout::kRows ? ", rows" : ", columns") << (shape.has_places ? ", places" : "");
}

// Activations, a weight and what they must give: exact sums of groups in int64, scaled and added as ops.h states.
class Problem {
 public:
  Problem(const Shape& shape, Int4Packing packing, Random random)
      : shape_(shape),
        packing_(packing),
        guard_(random.chance(0.5) ? Guard::kAfter : Guard::kBefore),
        stride_(shape.K + random.pick<int64_t>({0, 0, 7})),
        stored_(random_int8(random, shape.N, shape.K, 1, shape.density, -8, 7)),
        scale_(random_scales(random, shape.N, shape.K, packing.group_cols)),
        place_(shape.has_places ? random_places(random, shape.N) : std::vector<uint8_t>()),
        x_(positions() * stride_ + kReadBeyond, guard_),
        x_scale_(shape.images, guard_),
        bias_(shape.has_bias ? shape.N : 0, guard_),
        residual_(shape.has_residual ? positions() * shape.N : 0, guard_) {
    for (uint8_t& byte : x_) byte = static_cast<uint8_t>(random.integer(0, 255));
    if (shape.extreme != Extreme::kNone) {
      std::fill(x_.begin(), x_.end(), uint8_t(shape.extreme == Extreme::kLargest ? 255 : 0));
      std::fill(stored_.values.begin(), stored_.values.end(), random.pick<int8_t>({-8, 7}));
    }
    for (float& scale : x_scale_) scale = 0.01f + 0.005f * random.number();
    for (float& value : bias_) value = random.number();
    for (float& value : residual_) value = random.number();
  }

  PackedInt4 pack() const { return PackedInt4(stored_, scale_, packing_, guard_, place_); }
  Guard guard() const { return guard_; }

  // function(arguments) with a fresh y, which is returned.
  template <class Function>
  Buffer<float> run_with(const PackedInt4& weight, Function function) const {
    Buffer<float> y = unwritten_output(positions() * shape_.N, guard_);
    LookupInt4Args args;
    args.weight = weight.view();
    args.x.x = x_.data();
    args.x.images = shape_.images;
    args.x.width = shape_.pixels;
    args.x.image_stride = shape_.pixels * stride_;
    args.x.column_stride = stride_;
    args.x.scale = x_scale_.data();
    args.x.zero_point = shape_.zero_point;
    args.layout = shape_.layout;
    args.y = y.data();
    args.ldy = shape_.layout == Layout::kRows ? shape_.N : shape_.N * shape_.pixels;
    args.residual = shape_.has_residual ? residual_.data() : nullptr;
    args.epilogue = {shape_.has_bias ? bias_.data() : nullptr, Activation::kRelu};
    function(args);
    return y;
  }
  Buffer<float> run(const Kernel<LookupInt4Args>& kernel, const PackedInt4& weight) const {
    return run_with(weight,
                    [&](const LookupInt4Args& args) { run_all(kernel, args, args.weight.num_blocks(), guard_); });
  }

  void check(const Buffer<float>& y) const {
    for (int64_t m = 0; m < positions(); ++m) {
      for (int64_t n = 0; n < shape_.N; ++n) {
        const bool is_rows = shape_.layout == Layout::kRows;
        const int64_t image = m / shape_.pixels, pixel = m % shape_.pixels;
        const int64_t at = is_rows ? m * shape_.N + n : (image * shape_.N + n) * shape_.pixels + pixel;
        float v = std::fma(sum(m, n), x_scale_[image], shape_.has_bias ? bias_[n] : 0.0f);
        if (shape_.has_residual) v += residual_[at];
        ASSERT_EQ(y[at], std::max(v, 0.0f)) << "position " << m << ", row " << n;
      }
    }
  }

 private:
  int64_t positions() const { return shape_.images * shape_.pixels; }

  float sum(int64_t m, int64_t n) const {
    const int64_t row = place_.empty() ? n : n - n % kLookupWindow + place_[static_cast<size_t>(n)];
    const int64_t groups = (shape_.K + packing_.group_cols - 1) / packing_.group_cols;
    float sum = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      int64_t acc = 0;
      for (int64_t k = g * packing_.group_cols; k < std::min((g + 1) * packing_.group_cols, shape_.K); ++k) {
        acc += (int64_t(x_[m * stride_ + k]) - shape_.zero_point) * stored_.at(row, k);
      }
      sum = std::fma(float(acc), scale_[static_cast<size_t>(row * groups + g)], sum);
    }
    return sum;
  }

  Shape shape_;
  Int4Packing packing_;
  Guard guard_;
  int64_t stride_;
  DenseInt8 stored_;
  std::vector<float> scale_;
  std::vector<uint8_t> place_;
  Buffer<uint8_t> x_;
  Buffer<float> x_scale_, bias_, residual_;
};

void randomize_options(Shape& shape, Random& random) {
  shape.zero_point = random.pick({0, 1, 127, 128, 255});
  shape.layout = random.chance(0.5) ? Layout::kRows : Layout::kColumns;
  shape.has_bias = random.chance(0.5);
  shape.has_residual = random.chance(0.5);
  shape.has_places = random.chance(0.3);
}

// On one of the packings; shapes with seeds in a row take them in turn.
void check_kernel(const Kernel<LookupInt4Args>& kernel, const Shape& shape) {
  const std::vector<Int4Packing> packings = int4_packings_of(kernel);
  ASSERT_FALSE(packings.empty()) << "a kernel should support a packing of these tests";
  const Int4Packing packing = packings[shape.seed % packings.size()];
  const Case trace(shape, ", ", packing);
  const Problem problem(shape, packing, Random(shape.seed));
  const PackedInt4 weight = problem.pack();
  ASSERT_EQ(validate_lookup_int4(weight.view(), {0, weight.view().num_blocks()}), nullptr);
  problem.check(problem.run(kernel, weight));
}

TEST_P(LookupInt4Test, LinearAroundTheTile) {
  uint64_t seed = 0;
  for (const int64_t N : {0, 1, 3, 4, 5, 15, 16, 17, 70, 129}) {
    for (const int64_t images : {1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 70}) {
      for (const int64_t K : {0, 1, 15, 16, 17, 64, 65, 255, 257, 600}) {
        Random random(++seed);
        Shape shape{.N = N, .K = K, .images = images, .density = random.pick({0.0, 0.01, 0.1, 0.5, 1.0})};
        randomize_options(shape, random);
        shape.seed = seed;
        check_kernel(kernel(), shape);
        if (HasFailure()) return;
      }
    }
  }
}

// The largest sums of a group of kMaxGroupCols, and many groups.
TEST_P(LookupInt4Test, ExtremesOnAllPackings) {
  for (const Extreme extreme : {Extreme::kLargest, Extreme::kSmallest}) {
    for (const int32_t zero_point : {0, 128, 255}) {
      for (uint64_t seed = 1; seed <= 12; ++seed) {
        Shape shape{.N = 17, .K = 4500, .images = 3, .extreme = extreme, .zero_point = zero_point, .seed = seed};
        check_kernel(kernel(), shape);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(LookupInt4Test, PositionsOfImages) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    Shape shape{.N = random.integer(1, 40), .K = random.integer(1, 300), .images = random.integer(1, 4)};
    shape.pixels = random.pick<int64_t>({1, 5, 33, 64});
    randomize_options(shape, random);
    shape.seed = seed;
    check_kernel(kernel(), shape);
    if (HasFailure()) return;
  }
}

TEST_P(LookupInt4Test, AnySplitGivesTheSameBits) {
  const std::vector<Int4Packing> packings = int4_packings_of(kernel());
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    Shape shape{.N = random.integer(1, 300), .K = random.integer(1, 300), .images = random.integer(1, 70)};
    randomize_options(shape, random);
    const Case trace(shape, ", seed ", seed);
    const Problem problem(shape, packings[seed % packings.size()], Random(seed));
    const PackedInt4 weight = problem.pack();
    const Buffer<float> whole = problem.run(kernel(), weight);
    const Buffer<float> parts = problem.run_with(weight, [&](const LookupInt4Args& args) {
      run_split(kernel(), args, {0, args.weight.num_blocks()}, {0, kernel().num_tiles(args)}, random);
    });
    ASSERT_TRUE(same_bits(whole, parts));
    const Buffer<float> threads = problem.run_with(weight, [&](const LookupInt4Args& args) {
      run_threads(kernel(), args, args.weight.num_blocks(), random.integer(2, 8));
    });
    ASSERT_TRUE(same_bits(whole, threads));
  }
}

// validate_lookup_int4() does not look at them: a damaged one gives a wrong result and no wrong read.
TEST_P(LookupInt4Test, AnySlotsAreSafe) {
  for (const Int4Packing packing : int4_packings_of(kernel())) {
    for (const int64_t K : {1, 16, 70, 300}) {
      const Shape shape{.N = 9, .K = K, .images = 5, .density = 0.5};
      const Case trace(shape, ", ", packing);
      const Problem problem(shape, packing, Random(static_cast<uint64_t>(K)));
      PackedInt4 weight = problem.pack();
      Random random(static_cast<uint64_t>(K));
      for (uint8_t& slot : weight.slots) slot = static_cast<uint8_t>(random.integer(0, 255));
      problem.run(kernel(), weight);
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
