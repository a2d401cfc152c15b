// SPARSECORE_ISA is read once per process: CMakeLists.txt runs this program again with other values of it.
#include "sparsecore/isa.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>

namespace sparsecore::test {
namespace {

constexpr Isa kAllIsas[] = {Isa::kScalar,     Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512, Isa::kAvx512Vnni,
                            Isa::kAvx512Vbmi, Isa::kAmx,  Isa::kNeon,    Isa::kNeonDot};

std::string forced_isa() {
  const char* text = std::getenv("SPARSECORE_ISA");
  return text == nullptr ? "" : text;
}

TEST(Isa, NamesAreThoseOfTheStyleGuideAndUnique) {
  EXPECT_STREQ(isa_name(Isa::kScalar), "scalar");
  EXPECT_STREQ(isa_name(Isa::kAvx2), "avx2");
  EXPECT_STREQ(isa_name(Isa::kAvx512Vbmi), "avx512vbmi");
  EXPECT_STREQ(isa_name(Isa::kNeonDot), "neondot");
  std::set<std::string> names;
  for (const Isa isa : kAllIsas) names.insert(isa_name(isa));
  EXPECT_EQ(names.size(), std::size(kAllIsas));
}

TEST(Isa, ScalarIsAlwaysThere) {
  EXPECT_TRUE(cpu_has(Isa::kScalar));
  EXPECT_TRUE(isa_enabled(Isa::kScalar));
}

TEST(Isa, OnlyWhatTheCpuHasIsEnabled) {
  for (const Isa isa : kAllIsas) EXPECT_LE(isa_enabled(isa), cpu_has(isa)) << isa_name(isa);
  EXPECT_TRUE(cpu_has(isa_detected()));
  EXPECT_TRUE(isa_enabled(isa_in_use()));
  EXPECT_LE(isa_in_use(), isa_detected());
}

TEST(Isa, ArchitecturesDoNotMix) {
#if defined(__x86_64__)
  EXPECT_FALSE(cpu_has(Isa::kNeon));
  EXPECT_FALSE(cpu_has(Isa::kNeonDot));
#else
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) EXPECT_FALSE(cpu_has(isa)) << isa_name(isa);
#endif
}

TEST(Isa, LaterSetsImplyTheirBase) {
  EXPECT_LE(cpu_has(Isa::kAvxVnni), cpu_has(Isa::kAvx2));
  EXPECT_LE(cpu_has(Isa::kAvx512), cpu_has(Isa::kAvx2));
  EXPECT_LE(cpu_has(Isa::kAvx512Vnni), cpu_has(Isa::kAvx512));
  EXPECT_LE(cpu_has(Isa::kAvx512Vbmi), cpu_has(Isa::kAvx512Vnni));
  EXPECT_LE(cpu_has(Isa::kNeonDot), cpu_has(Isa::kNeon));
}

TEST(Isa, TheForcedSetIsTheOneInUse) {
  if (forced_isa().empty()) {
    EXPECT_EQ(isa_in_use(), isa_detected());
    for (const Isa isa : kAllIsas) EXPECT_EQ(isa_enabled(isa), cpu_has(isa)) << isa_name(isa);
  } else {
    EXPECT_EQ(isa_name(isa_in_use()), forced_isa());
    for (const Isa isa : kAllIsas) EXPECT_EQ(isa_enabled(isa), cpu_has(isa) && isa <= isa_in_use()) << isa_name(isa);
  }
}

TEST(Isa, TheProcessorHasAName) {
  EXPECT_STRNE(cpu_name(), "");
  EXPECT_EQ(cpu_name(), cpu_name()) << "the text must stay where it is";
}

}  // namespace
}  // namespace sparsecore::test
