#include "sparsecore/huffman.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <vector>

#include "guarded.h"
#include "harness.h"
#include "random.h"

namespace sparsecore::test {
namespace {

using Bytes = std::vector<uint8_t>;

std::vector<int64_t> counts_of(const Bytes& symbols, size_t num_symbols) {
  std::vector<int64_t> counts(num_symbols);
  for (const uint8_t symbol : symbols) ++counts[symbol];
  return counts;
}

Bytes lengths_of(const std::vector<int64_t>& counts) {
  Bytes lengths(counts.size(), 0xff);
  huffman_lengths(counts, lengths.data());
  return lengths;
}

int64_t total_bits(const std::vector<int64_t>& counts, const Bytes& lengths) {
  return std::inner_product(counts.begin(), counts.end(), lengths.begin(), int64_t(0));
}

// Huffman's own algorithm: the two lightest trees become one, whose weight is paid once.
int64_t huffman_cost(const std::vector<int64_t>& counts) {
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> trees;
  for (const int64_t count : counts) {
    if (count > 0) trees.push(count);
  }
  int64_t cost = trees.size() == 1 ? trees.top() : 0;
  while (trees.size() > 1) {
    const int64_t first = trees.top();
    trees.pop();
    const int64_t second = trees.top();
    trees.pop();
    cost += first + second;
    trees.push(first + second);
  }
  return cost;
}

double entropy(const std::vector<int64_t>& counts) {
  const double total = double(std::accumulate(counts.begin(), counts.end(), int64_t(0)));
  double bits = 0.0;
  for (const int64_t count : counts) {
    if (count > 0) bits -= double(count) / total * std::log2(double(count) / total);
  }
  return bits;
}

// Symbols below num_symbols; the higher the skew, the rarer the last ones.
Bytes random_symbols(Random& random, int64_t size, int64_t num_symbols, int skew) {
  Bytes symbols(static_cast<size_t>(size));
  for (uint8_t& symbol : symbols) {
    int64_t limit = num_symbols;
    for (int i = 0; i < skew; ++i) limit = random.integer(1, limit);
    symbol = static_cast<uint8_t>(random.integer(0, limit - 1));
  }
  return symbols;
}

struct Coded {
  Bytes symbols, lengths, stream;
};

Coded random_coded(Random& random) {
  const int64_t num_symbols = random.pick<int64_t>({1, 2, 3, 16, 32, 200, 256});
  const int64_t size = random.pick<int64_t>({0, 1, 2, 7, 19, 20, 21, 100, 5000});
  Coded coded;
  coded.symbols = random_symbols(random, size, num_symbols, static_cast<int>(random.integer(0, 4)));
  const std::vector<int64_t> counts = counts_of(coded.symbols, static_cast<size_t>(num_symbols));
  coded.lengths = lengths_of(counts);
  coded.stream.resize(static_cast<size_t>(huffman_bytes(counts, coded.lengths.data())));
  huffman_encode(coded.symbols, coded.lengths, coded.stream.data());
  return coded;
}

// Decodes from and to guarded memory.
const char* decode(const Bytes& stream, const Bytes& lengths, size_t count, Guard guard, Bytes& symbols) {
  const Buffer<uint8_t> from(stream, guard), code(lengths, guard);
  Buffer<uint8_t> to(static_cast<int64_t>(count), guard);
  const char* problem = huffman_decode({from.data(), stream.size()}, {code.data(), lengths.size()}, {to.data(), count});
  symbols.assign(to.begin(), to.end());
  return problem;
}

TEST(Huffman, ThePictureOfTheHeader) {
  const Bytes symbols{1, 0, 3, 1};
  const std::vector<int64_t> counts = counts_of(symbols, 4);
  const Bytes lengths = lengths_of(counts);
  EXPECT_EQ(lengths, (Bytes{2, 1, 0, 2}));
  Bytes stream(static_cast<size_t>(huffman_bytes(counts, lengths.data())));
  huffman_encode(symbols, lengths, stream.data());
  EXPECT_EQ(stream, (Bytes{0b00011010}));
}

TEST(Huffman, RoundTrips) {
  for (uint64_t seed = 0; seed < 600; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Coded coded = random_coded(random);
    Bytes decoded;
    const char* problem = decode(coded.stream, coded.lengths, coded.symbols.size(),
                                 random.chance(0.5) ? Guard::kAfter : Guard::kBefore, decoded);
    ASSERT_EQ(problem, nullptr) << problem;
    ASSERT_EQ(decoded, coded.symbols);
  }
}

TEST(Huffman, LengthsAreOptimalAndWithinABitOfTheEntropy) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const int64_t num_symbols = random.integer(1, 256);
    const Bytes symbols = random_symbols(random, random.integer(1, 3000), num_symbols, seed % 5);
    const std::vector<int64_t> counts = counts_of(symbols, static_cast<size_t>(num_symbols));
    const Bytes lengths = lengths_of(counts);
    const int64_t bits = total_bits(counts, lengths);
    ASSERT_EQ(bits, huffman_cost(counts));  // no code here needs more than 15 bits
    ASSERT_EQ(validate_huffman(lengths), nullptr);
    const double H = entropy(counts), mean = double(8 * huffman_bytes(counts, lengths.data())) / double(symbols.size());
    ASSERT_LT(double(bits) / double(symbols.size()), H + 1.0 + 1e-9);
    ASSERT_GE(mean, H - 1e-9);
  }
}

TEST(Huffman, CodesAreLimitedTo15Bits) {
  std::vector<int64_t> fibonacci{1, 1};
  while (fibonacci.size() < 40) fibonacci.push_back(fibonacci[fibonacci.size() - 1] + fibonacci[fibonacci.size() - 2]);
  const Bytes lengths = lengths_of(fibonacci);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), kMaxHuffmanBits);
  EXPECT_EQ(validate_huffman(lengths), nullptr);
  EXPECT_LT(double(total_bits(fibonacci, lengths)), 1.001 * double(huffman_cost(fibonacci)));

  // All of them at once, the rare ones longer than the decoder's table.
  Bytes symbols(40), stream, decoded;
  std::iota(symbols.begin(), symbols.end(), uint8_t(0));
  const Bytes once = symbols;
  for (int i = 1; i < 32; ++i) symbols.insert(symbols.end(), once.begin(), once.end());
  const std::vector<int64_t> counts = counts_of(symbols, 40);
  stream.resize(static_cast<size_t>(huffman_bytes(counts, lengths.data())));
  huffman_encode(symbols, lengths, stream.data());
  for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
    EXPECT_EQ(decode(stream, lengths, symbols.size(), guard, decoded), nullptr);
    EXPECT_EQ(decoded, symbols);
  }
}

TEST(Huffman, LengthsOfNoCodeAreRefused) {
  EXPECT_EQ(validate_huffman(Bytes{}), nullptr);
  EXPECT_EQ(validate_huffman(Bytes{0, 0, 1}), nullptr);
  EXPECT_EQ(validate_huffman(Bytes{1, 2, 2}), nullptr);
  EXPECT_NE(validate_huffman(Bytes{0, 2}), nullptr) << "a single symbol has one bit";
  EXPECT_NE(validate_huffman(Bytes{1, 2}), nullptr) << "incomplete";
  EXPECT_NE(validate_huffman(Bytes{1, 1, 1}), nullptr) << "more codes than there are";
  EXPECT_NE(validate_huffman(Bytes{1, 1, 16}), nullptr);
  EXPECT_NE(validate_huffman(Bytes(257, 8)), nullptr);
}

TEST(Huffman, AnotherNumberOfBytesOrSymbolsIsRefused) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    const Coded coded = random_coded(random);
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    Bytes decoded, longer = coded.stream, shorter = coded.stream;
    longer.push_back(0);
    EXPECT_NE(decode(longer, coded.lengths, coded.symbols.size(), guard, decoded), nullptr);
    if (!shorter.empty()) {
      shorter.pop_back();
      EXPECT_NE(decode(shorter, coded.lengths, coded.symbols.size(), guard, decoded), nullptr);
      EXPECT_NE(decode(coded.stream, coded.lengths, coded.symbols.size() + 8, guard, decoded), nullptr);
    }
  }
}

// Whatever damage makes of it: refused or decoded, but nothing outside is touched, and accepted streams are those that
// encoding the symbols gives again.
TEST(Huffman, DamageIsRefusedOrHarmless) {
  int num_accepted = 0;
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    Random random(seed);
    const Case trace("seed ", seed);
    Coded coded = random_coded(random);
    size_t count = coded.symbols.size();
    for (int64_t i = random.integer(1, 3); i > 0; --i) {
      const auto damage = [&](Bytes& bytes, int64_t bits) {
        if (bytes.empty()) return;
        uint8_t& byte = bytes[static_cast<size_t>(random.integer(0, static_cast<int64_t>(bytes.size()) - 1))];
        byte = static_cast<uint8_t>(byte ^ 1 << random.integer(0, bits - 1));
      };
      if (random.chance(0.7)) damage(coded.stream, 8);
      if (random.chance(0.2)) damage(coded.lengths, 5);
      if (random.chance(0.1)) coded.stream.resize(static_cast<size_t>(random.integer(0, 60)));
      if (random.chance(0.1)) count = static_cast<size_t>(random.integer(0, 60));
    }
    Bytes decoded;
    const Guard guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
    if (decode(coded.stream, coded.lengths, count, guard, decoded) != nullptr) continue;
    ++num_accepted;
    Bytes again(static_cast<size_t>(huffman_bytes(counts_of(decoded, coded.lengths.size()), coded.lengths.data())));
    huffman_encode(decoded, coded.lengths, again.data());
    ASSERT_EQ(again, coded.stream);
  }
  EXPECT_GT(num_accepted, 300);
}

}  // namespace
}  // namespace sparsecore::test
