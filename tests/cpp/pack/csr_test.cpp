#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "csr.h"
#include "harness.h"
#include "sparsecore/pack.h"

namespace sparsecore::test {
namespace {

template <class T>
T zero_value(bool is_negative) {
  if constexpr (std::is_same_v<T, float>) return is_negative ? -0.0f : 0.0f;
  if constexpr (std::is_same_v<T, uint16_t>) return is_negative ? 0x8000 : 0;
  return T(0);
}

template <class T>
bool is_zero(T value) {
  if constexpr (std::is_same_v<T, uint16_t>) {
    return value == 0 || value == 0x8000;  // of float16 and bfloat16 alike
  } else {
    return value == T(0);
  }
}

template <class T>
bool equal_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
class PackTest : public ::testing::Test {};

using Types = ::testing::Types<float, uint16_t, int8_t>;
struct TypeName {
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, float> ? "float" : std::is_same_v<T, uint16_t> ? "bits16" : "int8";
  }
};
TYPED_TEST_SUITE(PackTest, Types, TypeName);

// A dense weight with zeros of both signs and, for floats, NaN and infinities of any payload.
template <class T>
Buffer<T> random_dense(Random& random, int64_t size, double density, Guard guard) {
  Buffer<T> dense(size, guard);
  for (T& value : dense) {
    if (!random.chance(density)) {
      value = zero_value<T>(random.chance(0.5));
    } else if constexpr (std::is_same_v<T, float>) {
      value = random.any_float();
    } else {
      value = random_value<T>(random);
    }
  }
  return dense;
}

// pack.h's two passes, each over a random split of the rows.
template <class T>
GuardedCsr<T> pack(const T* dense, const bool* mask, int64_t rows, int64_t cols, Guard guard, Random& random) {
  const auto for_row_parts = [&](auto function) {
    for (int64_t n = 0; n < rows;) {
      const int64_t end = random.integer(n + 1, rows);
      function(Range{n, end});
      n = end;
    }
  };
  Buffer<int64_t> counts(rows, guard);
  for_row_parts([&](Range part) { count_kept<T>(dense, mask, cols, part, counts.data()); });
  std::vector<int32_t> row_ptr{0};
  for (const int64_t count : counts) row_ptr.push_back(row_ptr.back() + static_cast<int32_t>(count));
  Csr<T> empty{rows, cols, row_ptr, {}, {}};
  empty.col_idx.resize(static_cast<size_t>(row_ptr.back()), -1);
  empty.values.resize(static_cast<size_t>(row_ptr.back()));
  GuardedCsr<T> csr(empty, guard);
  for_row_parts([&](Range part) {
    fill_csr<T>(dense, mask, cols, part, csr.row_ptr.data(), csr.col_idx.data(), csr.values.data());
  });
  return csr;
}

struct PackShape {
  int64_t rows, cols;
};
constexpr PackShape kShapes[] = {{0, 0}, {0, 5}, {5, 0}, {1, 1}, {1, 9}, {9, 1}, {7, 8}, {8, 33}, {33, 64}};
constexpr double kDensities[] = {0.0, 0.1, 0.5, 1.0};

TYPED_TEST(PackTest, KeepsExactlyTheEntriesOfTheMaskOrTheNonZeros) {
  using T = TypeParam;
  uint64_t seed = 0;
  for (const PackShape shape : kShapes) {
    for (const double density : kDensities) {
      for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
        for (const bool has_mask : {false, true}) {
          const Case trace("seed ", ++seed, ": ", shape.rows, "x", shape.cols, ", density ", density);
          Random random(seed);
          const int64_t size = shape.rows * shape.cols;
          const Buffer<T> dense = random_dense<T>(random, size, density, guard);
          Buffer<bool> mask(has_mask ? size : 0, guard);
          for (bool& keep : mask) keep = random.chance(0.4);  // keeps zeros and drops values
          const GuardedCsr<T> csr =
              pack<T>(dense.data(), has_mask ? mask.data() : nullptr, shape.rows, shape.cols, guard, random);

          ASSERT_EQ(
              validate_csr(shape.cols, csr.values.size(), csr.row_ptr.data(), csr.col_idx.data(), {0, shape.rows}),
              nullptr);
          int64_t i = 0;
          for (int64_t at = 0; at < size; ++at) {
            if (has_mask ? !mask[at] : is_zero(dense[at])) continue;
            ASSERT_LT(i, csr.values.size());
            ASSERT_LE(csr.row_ptr[at / shape.cols], i);
            ASSERT_GT(csr.row_ptr[at / shape.cols + 1], i);
            ASSERT_EQ(csr.col_idx[i], at % shape.cols);
            ASSERT_TRUE(equal_bits(csr.values[i], dense[at])) << "entry " << at;
            ++i;
          }
          ASSERT_EQ(i, csr.values.size());
        }
      }
    }
  }
}

TYPED_TEST(PackTest, UnpackIsTheInverse) {
  using T = TypeParam;
  uint64_t seed = 100;
  for (const PackShape shape : kShapes) {
    for (const double density : kDensities) {
      for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
        const Case trace("seed ", ++seed, ": ", shape.rows, "x", shape.cols, ", density ", density);
        Random random(seed);
        const int64_t size = shape.rows * shape.cols;
        const Buffer<T> dense = random_dense<T>(random, size, density, guard);
        const GuardedCsr<T> csr = pack<T>(dense.data(), nullptr, shape.rows, shape.cols, guard, random);
        Buffer<T> back(size, guard);
        std::memset(back.data(), 0x5a, static_cast<size_t>(size) * sizeof(T));
        const int64_t middle = random.integer(0, shape.rows);
        unpack_csr<T>(csr.view(), {middle, shape.rows}, back.data());
        unpack_csr<T>(csr.view(), {0, middle}, back.data());
        for (int64_t at = 0; at < size; ++at) {
          const T expected = is_zero(dense[at]) ? T(0) : dense[at];  // -0.0 is not stored and comes back as zero
          ASSERT_TRUE(equal_bits(back[at], expected)) << "entry " << at;
        }
      }
    }
  }
}

TYPED_TEST(PackTest, AMaskKeepsZerosOfBothSigns) {
  using T = TypeParam;
  const T dense[] = {zero_value<T>(true), T(3), zero_value<T>(false)};
  const bool mask[] = {true, false, true};
  Random random(1);
  const GuardedCsr<T> csr = pack<T>(dense, mask, 1, 3, Guard::kAfter, random);
  ASSERT_EQ(csr.values.size(), 2);
  EXPECT_TRUE(equal_bits(csr.values[0], dense[0]));
  EXPECT_TRUE(equal_bits(csr.values[1], dense[2]));
  T back[3];
  unpack_csr<T>(csr.view(), {0, 1}, back);
  EXPECT_TRUE(equal_bits(back[0], dense[0])) << "a stored -0.0 keeps its sign";
  EXPECT_TRUE(equal_bits(back[1], T(0)));
}

TYPED_TEST(PackTest, TransposeIsExactAndItsOwnInverse) {
  using T = TypeParam;
  uint64_t seed = 200;
  for (const PackShape shape : kShapes) {
    for (const Fill fill : kAllFills) {
      for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
        const Case trace("seed ", ++seed, ": ", shape.rows, "x", shape.cols, ", fill ", fill);
        Random random(seed);
        const Csr<T> content = random_csr<T>(random, shape.rows, shape.cols, fill);
        const GuardedCsr<T> csr(content, guard);
        const auto transposed = [&](const GuardedCsr<T>& source) {
          Csr<T> target{source.cols, source.rows, {}, {}, {}};
          target.row_ptr.resize(static_cast<size_t>(source.cols) + 1, -7);
          target.col_idx.resize(static_cast<size_t>(source.values.size()), -7);
          target.values.resize(static_cast<size_t>(source.values.size()));
          GuardedCsr<T> result(target, guard);
          transpose_csr<T>(source.view(), result.row_ptr.data(), result.col_idx.data(), result.values.data());
          return result;
        };
        const GuardedCsr<T> flipped = transposed(csr);
        ASSERT_EQ(flipped.row_ptr[0], 0);
        ASSERT_EQ(flipped.row_ptr[shape.cols], csr.values.size());
        ASSERT_EQ(validate_csr(shape.rows, csr.values.size(), flipped.row_ptr.data(), flipped.col_idx.data(),
                               {0, shape.cols}),
                  nullptr);
        std::vector<T> dense(static_cast<size_t>(shape.rows * shape.cols)), dense_flipped(dense.size());
        unpack_csr<T>(csr.view(), {0, shape.rows}, dense.data());
        unpack_csr<T>(flipped.view(), {0, shape.cols}, dense_flipped.data());
        for (int64_t n = 0; n < shape.rows; ++n) {
          for (int64_t k = 0; k < shape.cols; ++k) {
            ASSERT_TRUE(equal_bits(dense[static_cast<size_t>(n * shape.cols + k)],
                                   dense_flipped[static_cast<size_t>(k * shape.rows + n)]));
          }
        }
        const GuardedCsr<T> back = transposed(flipped);
        ASSERT_TRUE(std::equal(back.row_ptr.begin(), back.row_ptr.end(), csr.row_ptr.begin()));
        ASSERT_TRUE(std::equal(back.col_idx.begin(), back.col_idx.end(), csr.col_idx.begin()));
        ASSERT_TRUE(std::equal(back.values.begin(), back.values.end(), csr.values.begin(), equal_bits<T>));
      }
    }
  }
}

TEST(Pack, NanAndTheSmallestNumbersAreNotZero) {
  const float dense[] = {std::nanf(""), std::numeric_limits<float>::denorm_min(), 0.0f, -0.0f,
                         -std::numeric_limits<float>::infinity()};
  int64_t count = 0;
  count_kept<float>(dense, nullptr, 5, {0, 1}, &count);
  EXPECT_EQ(count, 3);
  const uint16_t half[] = {0x7e00, 0x0001, 0x0000, 0x8000, 0xfc00, 0x8001};
  count_kept<uint16_t>(half, nullptr, 6, {0, 1}, &count);
  EXPECT_EQ(count, 4);
}

// A bool tensor made from bytes holds any of them; counting and filling must agree on what is kept.
TEST(Pack, AnyByteOfAMaskButZeroIsTrue) {
  const uint8_t bytes[] = {2, 0, 255, 1, 0x80};
  const auto* mask = reinterpret_cast<const bool*>(bytes);
  const float dense[] = {1, 2, 3, 4, 5};
  int64_t count = 0;
  count_kept<float>(dense, mask, 5, {0, 1}, &count);
  ASSERT_EQ(count, 4);
  const int32_t row_ptr[] = {0, 4};
  std::vector<int32_t> col_idx(4);
  std::vector<float> values(4);
  fill_csr<float>(dense, mask, 5, {0, 1}, row_ptr, col_idx.data(), values.data());
  EXPECT_EQ(col_idx, (std::vector<int32_t>{0, 2, 3, 4}));
  EXPECT_EQ(values, (std::vector<float>{1, 3, 4, 5}));
}

TEST(Pack, RunningSumReturnsTotalsThatInt32CannotHold) {
  std::vector<int32_t> ptr{77, 3, 0, 5};
  EXPECT_EQ(running_sum(ptr.data(), 3), 8);
  EXPECT_EQ(ptr, (std::vector<int32_t>{0, 3, 3, 8}));
  EXPECT_EQ(running_sum(ptr.data(), 0), 0);
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  ptr = {0, kMax, kMax, kMax};
  EXPECT_EQ(running_sum(ptr.data(), 3), 3 * int64_t{kMax});
}

// --- validate_csr ---

// The same rule, written from the contract: is row n safe for a kernel?
bool is_row_valid(const std::vector<int32_t>& row_ptr, const std::vector<int32_t>& col_idx, int64_t cols, int64_t n) {
  const int64_t nnz = static_cast<int64_t>(col_idx.size());
  const int64_t begin = row_ptr[static_cast<size_t>(n)], end = row_ptr[static_cast<size_t>(n) + 1];
  if (begin < 0 || begin > nnz || end < 0 || end > nnz || end < begin) return false;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = col_idx[static_cast<size_t>(i)];
    if (k < 0 || k >= cols) return false;
    if (i > begin && k <= col_idx[static_cast<size_t>(i) - 1]) return false;
  }
  return true;
}

// Over all rows, and over random parts of them, on guarded arrays: entries of other rows must not matter.
void check_validation(const Csr<int8_t>& csr, Random& random, const char* damage) {
  const GuardedCsr<int8_t> guarded(csr, random.chance(0.5) ? Guard::kAfter : Guard::kBefore);
  const auto check_rows = [&](Range rows) {
    bool is_valid = true;
    for (int64_t n = rows.begin; n < rows.end; ++n) is_valid &= is_row_valid(csr.row_ptr, csr.col_idx, csr.cols, n);
    const char* text = validate_csr(csr.cols, csr.nnz(), guarded.row_ptr.data(), guarded.col_idx.data(), rows);
    EXPECT_EQ(text == nullptr, is_valid) << damage << ", rows " << rows.begin << " to " << rows.end << ": "
                                         << (text == nullptr ? "nothing found" : text);
    EXPECT_STRNE(text, "");
  };
  check_rows({0, csr.rows});
  for (int part = 0; part < 4 && csr.rows > 0; ++part) {
    const int64_t begin = random.integer(0, csr.rows - 1);
    check_rows({begin, random.integer(begin, csr.rows)});
  }
}

TEST(ValidateCsr, AcceptsWhatIsValid) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Case trace("seed ", seed);
    Random random(seed);
    const Csr<int8_t> csr =
        random_csr<int8_t>(random, random.integer(0, 20), random.integer(0, 40), random.pick(kAllFills));
    EXPECT_EQ(validate_csr(csr.cols, csr.nnz(), csr.row_ptr.data(), csr.col_idx.data(), {0, csr.rows}), nullptr);
    check_validation(csr, random, "no damage");
  }
}

TEST(ValidateCsr, FindsEachKindOfDamage) {
  constexpr int32_t kFar = std::numeric_limits<int32_t>::max(), kNear = std::numeric_limits<int32_t>::min();
  int num_damaged = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const Case trace("seed ", seed);
    Random random(seed);
    Csr<int8_t> csr = random_csr<int8_t>(random, random.integer(2, 12), random.integer(2, 40), Fill::kHalf);
    if (csr.nnz() < 2) continue;
    const auto row = static_cast<size_t>(random.integer(0, csr.rows - 1));
    const auto entry = static_cast<size_t>(random.integer(0, csr.nnz() - 1));
    const bool has_left = entry > 0 && std::find(csr.row_ptr.begin(), csr.row_ptr.end(), static_cast<int32_t>(entry)) ==
                                           csr.row_ptr.end();  // its left neighbour is in the same row
    const char* damage = nullptr;
    switch (seed % 10) {
      case 0:
        damage = "row_ptr descends";
        csr.row_ptr[row + 1] = csr.row_ptr[row] - 1;
        break;
      case 1:
        damage = "row_ptr negative";
        csr.row_ptr[row] = static_cast<int32_t>(random.integer(-5, -1));
        break;
      case 2:
        damage = "row_ptr just past nnz";
        csr.row_ptr[row + 1] = static_cast<int32_t>(csr.nnz()) + 1;
        break;
      case 3:
        damage = "row_ptr far away";
        csr.row_ptr[row + 1] = random.chance(0.5) ? kFar : kNear;
        break;
      case 4:
        damage = "col_idx equal to K";
        csr.col_idx[entry] = static_cast<int32_t>(csr.cols);
        break;
      case 5:
        damage = "col_idx negative";
        csr.col_idx[entry] = static_cast<int32_t>(random.integer(-5, -1));
        break;
      case 6:
        damage = "col_idx far away";
        csr.col_idx[entry] = random.chance(0.5) ? kFar : kNear;
        break;
      case 7:
        damage = "column twice";
        if (!has_left) continue;
        csr.col_idx[entry] = csr.col_idx[entry - 1];
        break;
      case 8:
        damage = "columns swapped";
        if (!has_left) continue;
        std::swap(csr.col_idx[entry], csr.col_idx[entry - 1]);
        break;
      case 9:
        damage = "entries cut off";
        csr.col_idx.pop_back();
        csr.values.pop_back();
        break;
    }
    ++num_damaged;
    EXPECT_NE(validate_csr(csr.cols, csr.nnz(), csr.row_ptr.data(), csr.col_idx.data(), {0, csr.rows}), nullptr)
        << damage;
    check_validation(csr, random, damage);
    if (HasFailure()) return;
  }
  EXPECT_GT(num_damaged, 3000);
}

TEST(ValidateCsr, SurvivesGarbage) {
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    const Case trace("seed ", seed);
    Random random(seed);
    Csr<int8_t> csr;
    csr.rows = random.integer(0, 6);
    csr.cols = random.integer(0, 6);
    const int64_t nnz = random.integer(0, 12);
    const int64_t reach = random.chance(0.2) ? int64_t(1) << 31 : random.integer(1, 14);
    for (int64_t n = 0; n <= csr.rows; ++n) {
      csr.row_ptr.push_back(static_cast<int32_t>(random.integer(-reach / 4, reach - 1)));
    }
    if (random.chance(0.7)) std::sort(csr.row_ptr.begin(), csr.row_ptr.end());
    for (int64_t i = 0; i < nnz; ++i) {
      csr.col_idx.push_back(static_cast<int32_t>(random.integer(-1, csr.cols)));
      csr.values.push_back(1);
    }
    check_validation(csr, random, "garbage");
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace sparsecore::test
