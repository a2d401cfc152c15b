#include "sparsecore/isa.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace sparsecore {
namespace {

struct IsaRow {
  Isa isa;
  const char* name;
};

constexpr std::array<IsaRow, 9> kIsas{{
    {Isa::kScalar, "scalar"},
    {Isa::kAvx2, "avx2"},
    {Isa::kAvxVnni, "avxvnni"},
    {Isa::kAvx512, "avx512"},
    {Isa::kAvx512Vnni, "avx512vnni"},
    {Isa::kAvx512Vbmi, "avx512vbmi"},
    {Isa::kAmx, "amx"},
    {Isa::kNeon, "neon"},
    {Isa::kNeonDot, "neondot"},
}};

#if defined(__x86_64__)
// The compiler's own detection also asks the operating system whether it saves the registers (XGETBV).
bool detect(Isa isa) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvxVnni:  // leaf 7.1, EAX bit 4; not known to older compilers by name
      return avx2 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 4));
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return avx512 && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Vbmi:
      return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vbmi2");
    default:
      return false;  // AMX needs a permission request; no kernel uses it yet
  }
}
#elif defined(__aarch64__)
bool detect(Isa isa) {
  if (isa == Isa::kScalar || isa == Isa::kNeon) return true;  // NEON is part of the 64-bit base
#if defined(__linux__)
  if (isa == Isa::kNeonDot) return getauxval(AT_HWCAP) & (1ul << 20);  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  if (isa == Isa::kNeonDot) return true;  // every Apple 64-bit processor that runs macOS
#endif
  return false;
}
#else
bool detect(Isa isa) { return isa == Isa::kScalar; }
#endif

std::optional<Isa> parse_forced() {
  const char* text = std::getenv("SPARSECORE_ISA");
  if (text == nullptr || *text == '\0') return std::nullopt;
  std::string available;
  for (const IsaRow& row : kIsas) {
    if (!detect(row.isa)) continue;
    if (std::strcmp(row.name, text) == 0) return row.isa;
    available += available.empty() ? row.name : std::string(", ") + row.name;
  }
  throw std::invalid_argument("SPARSECORE_ISA: expected one of " + available + " (what this CPU has), got '" + text +
                              "'; unset it to use the best");
}

Isa last_where(bool (*condition)(Isa)) {
  Isa last = Isa::kScalar;
  for (const IsaRow& row : kIsas) {
    if (condition(row.isa)) last = row.isa;
  }
  return last;
}

}  // namespace

const char* isa_name(Isa isa) { return kIsas[static_cast<size_t>(isa)].name; }

bool cpu_has(Isa isa) {
  static const std::array<bool, kIsas.size()> has = [] {
    std::array<bool, kIsas.size()> result{};
    for (const IsaRow& row : kIsas) result[static_cast<size_t>(row.isa)] = detect(row.isa);
    return result;
  }();
  return has[static_cast<size_t>(isa)];
}

bool isa_enabled(Isa isa) {
  static const std::optional<Isa> forced = parse_forced();
  return cpu_has(isa) && (!forced || isa <= *forced);
}

Isa isa_detected() { return last_where(cpu_has); }
Isa isa_in_use() { return last_where(isa_enabled); }

const char* cpu_name() {
#if defined(__x86_64__)
  static const std::string name = [] {
    std::array<unsigned, 12> words{};
    for (unsigned i = 0; i < 3; ++i) {
      unsigned* word = &words[4 * i];
      if (!__get_cpuid(0x80000002u + i, word, word + 1, word + 2, word + 3)) return std::string("unknown");
    }
    std::string text(reinterpret_cast<const char*>(words.data()), sizeof(words));
    text.resize(std::strlen(text.c_str()));
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  }();
  return name.c_str();
#else
  return "unknown";
#endif
}

}  // namespace sparsecore
