// The few x86-64 instructions that generated code consists of, on whole vectors: AVX2 with FMA (VEX), or AVX-512
// (EVEX).
#pragma once

#include <cstdint>
#include <vector>

namespace sparsecore::jit {

// Registers of the System V calling convention: arguments one, two and three.
enum class Pointer : uint8_t { kValues = 7, kX = 6, kSums = 2 };

struct Address {
  Pointer base;
  int32_t offset;  // bytes
};

class Assembler {
 public:
  explicit Assembler(bool is_avx512) : is_avx512_(is_avx512) {}

  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  void load(int to, Address from) { memory_form(kPlain, 0x10, to, 0, from, vector_bytes()); }      // vmovups
  void store(Address to, int from) { memory_form(kPlain, 0x11, from, 0, to, vector_bytes()); }     // vmovups
  void broadcast(int to, Address from) { memory_form(kFused, 0x18, to, 0, from, sizeof(float)); }  // vbroadcastss
  void zero(int reg);                                                                              // vxorps, vpxord

  // sum += a * b (vfmadd231ps)
  void fma(int sum, int a, int b);
  void fma(int sum, int a, Address b) { memory_form(kFused, 0xB8, sum, a, b, vector_bytes()); }
  // b is one float for all lanes; AVX-512 alone
  void fma_broadcast(int sum, int a, Address b) { memory_form(kFused, 0xB8, sum, a, b, sizeof(float), true); }

  void advance(Pointer pointer, int32_t bytes);  // add
  void ret() { put(0xC3); }

  // Offsets of a memory operand of that many bytes that take one byte of code: [-128, 127] of these units.
  int32_t short_unit(int32_t operand_bytes) const { return is_avx512_ ? operand_bytes : 1; }

 private:
  // Opcode map and implied prefix, as VEX and EVEX number them: 0F, and 66 0F38.
  struct Form {
    int map, prefix;
  };
  static constexpr Form kPlain{1, 0}, kFused{2, 1};

  int32_t vector_bytes() const { return is_avx512_ ? 64 : 32; }
  void put(int byte) { bytes_.push_back(static_cast<uint8_t>(byte)); }
  void put32(int32_t value) {
    for (int shift = 0; shift < 32; shift += 8) put(value >> shift & 0xFF);
  }
  // `reg` is the operand in ModRM.reg, `second` the one in vvvv, `rm` the register or pointer in ModRM.rm.
  void prefix(Form form, int reg, int second, int rm, bool is_broadcast);
  void memory_form(Form form, int opcode, int reg, int second, Address at, int32_t operand_bytes,
                   bool is_broadcast = false);

  bool is_avx512_;
  std::vector<uint8_t> bytes_;
};

}  // namespace sparsecore::jit
