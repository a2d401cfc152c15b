// Instruction sets: what this CPU has, and which one SPARSECORE_ISA allows.
#pragma once

namespace sparsecore {

// Ordered within an architecture: forcing one also disables everything after it.
enum class Isa {
  kScalar,
  kAvx2,  // with FMA and F16C, as on every AVX2 machine since Haswell and Zen
  kAvxVnni,
  kAvx512,  // F, BW, DQ, VL
  kAvx512Vnni,
  kAvx512Vbmi,  // with VBMI2 and VNNI, as on Ice Lake and Zen 4
  kAmx,
  kNeon,
  kNeonDot,
};

// "scalar", "avx2", ...: the spelling of SPARSECORE_ISA and of kernel names.
const char* isa_name(Isa isa);

// The CPU and the operating system both support it.
bool cpu_has(Isa isa);

// cpu_has(isa), and not disabled by SPARSECORE_ISA. Kernel selection asks this.
// Throws std::invalid_argument if SPARSECORE_ISA names no instruction set of this CPU.
bool isa_enabled(Isa isa);

// The last one in the list above that the CPU has / that is enabled.
Isa isa_detected();
Isa isa_in_use();

// Brand string of the processor, or "unknown".
const char* cpu_name();

}  // namespace sparsecore
