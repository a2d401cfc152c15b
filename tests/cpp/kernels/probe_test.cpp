#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "guarded.h"
#include "sparsecore/ops.h"

namespace sparsecore {

void PrintTo(const Probe& probe, std::ostream* out) { *out << probe.name; }

}  // namespace sparsecore

namespace sparsecore::test {
namespace {

class ProbeTest : public ::testing::TestWithParam<Probe> {
 protected:
  void SetUp() override {
    if (!isa_enabled(GetParam().isa)) GTEST_SKIP() << isa_name(GetParam().isa) << " is not enabled on this machine";
  }
};
INSTANTIATE_TEST_SUITE_P(Table, ProbeTest, ::testing::ValuesIn(probes().begin(), probes().end()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// All chains are really computed: chain j counts up from j in steps of 0.999 * 0.001.
TEST_P(ProbeTest, FmaDoesTheWorkItIsCountedFor) {
  for (const int64_t repeats : {0, 1, 2, 1000}) {
    double expected = 0.0;
    for (int chain = 0; chain < kFmaProbeFlopsPerLane / 2; ++chain) {
      expected += double(GetParam().lanes) * (chain + double(repeats) * double(0.999f) * double(0.001f));
    }
    Buffer<float> sink = unwritten_output(1, Guard::kAfter);
    ProbeArgs args;
    args.repeats = repeats;
    args.sink = sink.data();
    GetParam().fma(args);
    EXPECT_NEAR(double(sink[0]), expected, expected * double(repeats + 20) * 0x1p-23) << repeats << " repeats";
  }
}

// Small integers: the sum is exact in any order, so every float was read as often as asked.
TEST_P(ProbeTest, ReadTouchesEveryFloatOfItsRange) {
  for (const int64_t size : {0, 64, 128, 4096}) {
    for (const int64_t begin : {0, 64}) {
      if (begin > size) continue;
      Buffer<float> data(size, Guard::kAfter, 64);
      double expected = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        data[i] = float(i % 7 + 1);
        if (i >= begin) expected += 3.0 * double(data[i]);
      }
      Buffer<float> sink = unwritten_output(1, Guard::kAfter);
      ProbeArgs args;
      args.data = data.data();
      args.repeats = 3;
      args.sink = sink.data();
      GetParam().read(args, {begin, size});
      EXPECT_EQ(double(sink[0]), expected) << size << " floats from " << begin;
    }
  }
}

// Ten times the repeats take longer: nothing is hoisted out of the loop. The least of several runs is compared, and
// by a factor that only a removed loop misses.
TEST_P(ProbeTest, TimeGrowsWithTheRepeats) {
  const auto least_seconds = [&](int64_t repeats) {
    double least = 1e9;
    for (int round = 0; round < 5; ++round) {
      float sink;
      ProbeArgs args;
      args.repeats = repeats;
      args.sink = &sink;
      const auto begin = std::chrono::steady_clock::now();
      GetParam().fma(args);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
      least = std::min(least, time.count());
    }
    return least;
  };
  EXPECT_GT(least_seconds(400'000), 2.0 * least_seconds(40'000));
}

}  // namespace
}  // namespace sparsecore::test
