// The vector wrappers alone: 16-bit numbers in and out, first lanes, and the copies that kernels are built of.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "guarded.h"
#include "harness.h"
#include "numbers.h"
#include "simd/wrapper.h"

namespace sparsecore::test {

void PrintTo(const Wrapper& wrapper, std::ostream* out) { *out << isa_name(wrapper.isa); }

namespace {

std::vector<Wrapper> wrappers() {
  return {
#if defined(__x86_64__)
      wrapper_avx512(), wrapper_avx2(),
#elif defined(__aarch64__)
      wrapper_neon(),
#endif
      wrapper_scalar()};
}

constexpr Dtype kNarrow[] = {Dtype::kBFloat16, Dtype::kFloat16};
constexpr Guard kGuards[] = {Guard::kAfter, Guard::kBefore};

bool same_number(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

class SimdTest : public ::testing::TestWithParam<Wrapper> {
 protected:
  void SetUp() override {
    if (!isa_enabled(simd().isa)) GTEST_SKIP() << isa_name(simd().isa) << " is not enabled on this machine";
  }
  const Wrapper& simd() const { return GetParam(); }

  // What store makes of each number.
  std::vector<uint16_t> stored(Dtype dtype, std::vector<float> numbers) const {
    const size_t size = numbers.size(), lanes = size_t(simd().lanes);
    numbers.resize((size + lanes - 1) / lanes * lanes);
    std::vector<uint16_t> bits(numbers.size());
    for (size_t i = 0; i < numbers.size(); i += lanes) simd().store(dtype, &numbers[i], &bits[i]);
    bits.resize(size);
    return bits;
  }

  void check_store(Dtype dtype, const std::vector<float>& numbers) const {
    const std::vector<uint16_t> bits = stored(dtype, numbers);
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (std::isnan(numbers[i])) {
        ASSERT_TRUE(std::isnan(decode(dtype, bits[i])))
            << dtype_name(dtype) << ", bits " << std::bit_cast<uint32_t>(numbers[i]);
      } else {
        ASSERT_EQ(bits[i], encode(dtype, double(numbers[i])))
            << dtype_name(dtype) << " of " << std::hexfloat << numbers[i];
      }
    }
  }

  static std::vector<float> random_floats(int64_t size, uint64_t seed) {
    Random random(seed);
    std::vector<float> numbers(static_cast<size_t>(size));
    for (float& number : numbers) number = random.number();
    return numbers;
  }
  static std::vector<float> rounded(Dtype dtype, std::vector<float> numbers) {
    for (float& number : numbers) number = static_cast<float>(round_to(dtype, double(number)));
    return numbers;
  }
};
INSTANTIATE_TEST_SUITE_P(Isas, SimdTest, ::testing::ValuesIn(wrappers()),
                         [](const auto& tested) { return std::string(isa_name(tested.param.isa)); });

TEST(Numbers, KnownBits) {
  EXPECT_EQ(encode(Dtype::kBFloat16, 1.0), 0x3f80);
  EXPECT_EQ(encode(Dtype::kFloat16, 1.0), 0x3c00);
  EXPECT_EQ(encode(Dtype::kFloat16, -65504.0), 0xfbff);
  EXPECT_EQ(encode(Dtype::kFloat16, 65520.0), 0x7c00);
  EXPECT_EQ(encode(Dtype::kFloat16, 0x1p-24), 0x0001);
  EXPECT_EQ(encode(Dtype::kFloat16, 0x1p-25), 0x0000);
  EXPECT_EQ(encode(Dtype::kBFloat16, 0x1p-133), 0x0001);
  EXPECT_EQ(decode(Dtype::kBFloat16, 0xc049), -3.140625f);
  EXPECT_EQ(decode(Dtype::kFloat16, 0x03ff), 1023 * 0x1p-24f);
  for (const Dtype dtype : kNarrow) {
    for (int bits = 0; bits < 65536; ++bits) {
      const float number = decode(dtype, static_cast<uint16_t>(bits));
      ASSERT_TRUE(std::isnan(number) || encode(dtype, double(number)) == bits) << dtype_name(dtype) << ", " << bits;
    }
  }
}

TEST_P(SimdTest, LoadsAndStoresEvery16BitPattern) {
  for (const Dtype dtype : kNarrow) {
    std::vector<uint16_t> bits(65536);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
    std::vector<float> numbers(bits.size());
    for (size_t i = 0; i < bits.size(); i += size_t(simd().lanes)) simd().load(dtype, &bits[i], &numbers[i]);
    for (size_t i = 0; i < bits.size(); ++i) {
      ASSERT_TRUE(same_number(numbers[i], decode(dtype, bits[i]))) << dtype_name(dtype) << ", bits " << i;
    }
    check_store(dtype, numbers);
  }
}

// Halfway between two neighbours goes to the even one; past the largest number, to infinity.
TEST_P(SimdTest, StoreRoundsHalfToEven) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const Dtype dtype : kNarrow) {
    std::vector<float> numbers;
    for (int bits = 0; bits < encode(dtype, double(kInf)); ++bits) {
      const double number = double(decode(dtype, static_cast<uint16_t>(bits)));
      const FloatFormat format = format_of(dtype);
      const int exponent = number == 0.0 ? format.least_exponent() : std::ilogb(number);
      const double step = std::ldexp(1.0, std::max(exponent, format.least_exponent()) - format.fraction_bits);
      const auto half = static_cast<float>(number + step / 2);
      for (const float near : {half, std::nextafterf(half, 0.0f), std::nextafterf(half, kInf)}) {
        numbers.insert(numbers.end(), {near, -near});
      }
    }
    check_store(dtype, numbers);
  }
}

TEST_P(SimdTest, StoresAnyFloatAtAll) {
  Random random(1);
  std::vector<float> numbers(200'000);
  for (float& number : numbers) number = random.any_float();
  using Limits = std::numeric_limits<float>;
  for (const float special : {Limits::infinity(), Limits::quiet_NaN(), Limits::denorm_min(), Limits::min(),
                              Limits::max(), std::bit_cast<float>(0x7f800001u), std::bit_cast<float>(0x7fffffffu)}) {
    numbers.insert(numbers.end(), {special, -special});
  }
  for (const Dtype dtype : kNarrow) check_store(dtype, numbers);
}

TEST_P(SimdTest, FirstLanes) {
  for (const Dtype dtype : kAllDtypes) {
    for (const Guard guard : kGuards) {
      for (int n = 0; n <= simd().lanes; ++n) {
        const Case trace(dtype_name(dtype), ", ", n, " lanes",
                         guard == Guard::kAfter ? ", guard after" : ", guard before");
        const std::vector<float> numbers = rounded(dtype, random_floats(simd().lanes, uint64_t(n)));
        const Numbers from(dtype, {numbers.begin(), numbers.begin() + n}, guard);
        std::vector<float> loaded(numbers.size(), std::nanf(""));
        simd().load_n(dtype, from.data(), n, loaded.data());
        for (int i = 0; i < simd().lanes; ++i) ASSERT_EQ(loaded[size_t(i)], i < n ? numbers[size_t(i)] : 0.0f);

        Numbers to = Numbers::unwritten(dtype, n, guard);
        simd().store_n(dtype, numbers.data(), to.data(), n);
        for (int i = 0; i < n; ++i) ASSERT_EQ(to[i], numbers[size_t(i)]);
      }
    }
  }
}

TEST_P(SimdTest, EvenAndOddLanesOfTwoVectors) {
  const int lanes = simd().lanes;
  std::vector<float> numbers(static_cast<size_t>(2 * lanes)), evens(static_cast<size_t>(lanes)), odds(evens);
  for (int i = 0; i < 2 * lanes; ++i) numbers[size_t(i)] = float(i);
  simd().even(numbers.data(), numbers.data() + lanes, evens.data());
  simd().odd(numbers.data(), numbers.data() + lanes, odds.data());
  for (int i = 0; i < lanes; ++i) {
    EXPECT_EQ(evens[size_t(i)], float(2 * i));
    EXPECT_EQ(odds[size_t(i)], float(2 * i + 1));
  }
}

TEST_P(SimdTest, CopiesReadAndWriteNothingElse) {
  for (const Dtype dtype : kAllDtypes) {
    for (const Guard guard : kGuards) {
      for (int64_t n = 0; n <= 2 * simd().lanes + 1; ++n) {
        const Case trace(dtype_name(dtype), ", ", n, guard == Guard::kAfter ? ", guard after" : ", guard before");
        const std::vector<float> numbers = rounded(dtype, random_floats(n, uint64_t(n)));
        const Numbers from(dtype, numbers, guard);
        Buffer<float> wide = unwritten_output(n, guard);
        simd().copy_in(dtype, from.data(), wide.data(), n);
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(wide[i], numbers[size_t(i)]) << i;
        Numbers to = Numbers::unwritten(dtype, n, guard);
        simd().copy_out(dtype, wide.data(), to.data(), n);
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(to[i], numbers[size_t(i)]) << i;
      }
    }
  }
}

// The last number that is read is the last of the buffer: a vector more, or one number more, faults.
TEST_P(SimdTest, StridedCopiesReadNothingPastTheLast) {
  for (const Dtype dtype : kAllDtypes) {
    for (const Guard guard : kGuards) {
      for (int64_t stride = 1; stride <= 4; ++stride) {
        for (int64_t n = 1; n <= 3 * simd().lanes + 1; ++n) {
          const Case trace(dtype_name(dtype), ", ", n, " in steps of ", stride,
                           guard == Guard::kAfter ? ", guard after" : ", guard before");
          const std::vector<float> numbers = rounded(dtype, random_floats((n - 1) * stride + 1, uint64_t(n)));
          const Numbers from(dtype, numbers, guard);
          Buffer<float> to = unwritten_output(n, guard);
          simd().copy_strided(dtype, from.data(), stride, to.data(), n);
          for (int64_t i = 0; i < n; ++i) ASSERT_EQ(to[i], numbers[size_t(i * stride)]) << i;
        }
      }
    }
  }
}

TEST_P(SimdTest, ExpandsOntoAnyLanes) {
  const int lanes = simd().lanes;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto size = static_cast<size_t>(lanes);
  std::vector<float> packed(size), b(size), c(size), to(size);
  for (uint32_t bits = 0; bits < 1u << lanes; ++bits) {
    for (size_t lane = 0; lane < size; ++lane) {
      packed[lane] = static_cast<float>(lane + 2);
      b[lane] = (bits >> lane & 1) != 0 ? 3.0f : nan;  // nothing is computed on the other lanes
      c[lane] = static_cast<float>(lane) / 16.0f;
    }
    simd().expand_fma(bits, packed.data(), b.data(), c.data(), to.data());
    float next = 2.0f;
    int64_t count = 0;
    for (size_t lane = 0; lane < size; ++lane) {
      const bool is_set = (bits >> lane & 1) != 0;
      ASSERT_EQ(to[lane], c[lane] + (is_set ? 3.0f * next : 0.0f)) << "bits " << bits << ", lane " << lane;
      next += is_set ? 1.0f : 0.0f;
      count += is_set;
    }
    ASSERT_EQ(simd().count(bits), count);
  }
}

TEST_P(SimdTest, LooksUpByTheLowBits) {
  const int bits = simd().table_bits;
  if (bits == 0) GTEST_SKIP() << "no table of numbers in a vector";
  const auto lanes = static_cast<size_t>(simd().lanes);
  std::vector<float> table(lanes), to(lanes);
  for (size_t i = 0; i < lanes; ++i) table[i] = static_cast<float>(i) + 0.5f;
  Random random(70);
  std::vector<uint32_t> index(lanes);
  for (int shifts = 0; shifts * bits < 32; ++shifts) {
    for (uint32_t& i : index) i = static_cast<uint32_t>(random.next());
    simd().lookup(table.data(), index.data(), shifts, to.data());
    for (size_t lane = 0; lane < lanes; ++lane) {
      ASSERT_EQ(to[lane], table[index[lane] >> (shifts * bits) & ((1u << bits) - 1)]) << shifts << ", lane " << lane;
    }
  }
}

TEST_P(SimdTest, TransposesOfEverySize) {
  const int64_t most = simd().lanes + 3;
  for (const Dtype dtype : kAllDtypes) {
    for (const Guard guard : kGuards) {
      for (int64_t rows = 1; rows <= most; ++rows) {
        for (int64_t cols = 1; cols <= most; ++cols) {
          const int64_t ld_from = cols + (rows + cols) % 3, ld_to = rows + cols % 2;
          const Case trace(dtype_name(dtype), ", ", rows, "x", cols,
                           guard == Guard::kAfter ? ", guard after" : ", guard before");
          const std::vector<float> numbers =
              rounded(dtype, random_floats((rows - 1) * ld_from + cols, uint64_t(rows * 100 + cols)));
          const Buffer<float> wide(numbers, guard);
          const Numbers narrow(dtype, numbers, guard);
          Buffer<float> in = unwritten_output((cols - 1) * ld_to + rows, guard);
          Numbers out = Numbers::unwritten(dtype, in.size(), guard);
          simd().transpose_in(dtype, narrow.data(), ld_from, rows, cols, in.data(), ld_to);
          simd().transpose_out(dtype, wide.data(), ld_from, rows, cols, out.data(), ld_to);
          for (int64_t at = 0; at < in.size(); ++at) {
            const int64_t r = at % ld_to, c = at / ld_to;
            if (r < rows) {
              ASSERT_EQ(in[at], numbers[size_t(r * ld_from + c)]) << r << ", " << c;
              ASSERT_EQ(out[at], in[at]) << r << ", " << c;
            } else {
              ASSERT_TRUE(is_unwritten(in[at]) && out.is_unwritten(at)) << "between the rows of the result";
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sparsecore::test
