// Random numbers that are the same on every platform (std distributions are not), from a seed that tests print.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace sparsecore::test {

// Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014 (SplitMix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // In [low, high], both included.
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }

  template <class T, size_t Count>
  T pick(const T (&choices)[Count]) {
    return choices[next() % Count];
  }

  bool chance(double probability) { return double(next() >> 11) * 0x1p-53 < probability; }

  // In [-1, 1), 24 significant bits.
  float number() { return float(int64_t(next() >> 39) - (int64_t(1) << 24)) * 0x1p-24f; }

  // Like number(), but now and then NaN or an infinity.
  float number_or_special(double probability) {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    constexpr float kSpecial[] = {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf};
    return chance(probability) ? pick(kSpecial) : number();
  }

  float any_float() { return std::bit_cast<float>(static_cast<uint32_t>(next() >> 32)); }

 private:
  uint64_t state_;
};

}  // namespace sparsecore::test
