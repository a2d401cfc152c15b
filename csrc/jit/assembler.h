// The few x86-64 instructions that generated code consists of, on whole vectors of AVX-512.
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

inline constexpr int32_t kVectorBytes = 64;

class Assembler {
 public:
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  void load(int to, Address from) { memory_form(kPlain, 0x10, to, 0, from, kVectorBytes); }   // vmovups
  void store(Address to, int from) { memory_form(kPlain, 0x11, from, 0, to, kVectorBytes); }  // vmovups
  void zero(int reg);                                                                         // vpxord
  // sum += a * b, where b is one float for all lanes: vfmadd231ps
  void fma_broadcast(int sum, int a, Address b) { memory_form(kFused, 0xB8, sum, a, b, sizeof(float), true); }
  void advance(Pointer pointer, int32_t bytes);  // add
  void ret() { put(0xC3); }

 private:
  // Opcode map and implied prefix, as EVEX numbers them: 0F, 66 0F and 66 0F38.
  struct Form {
    int map, prefix;
  };
  static constexpr Form kPlain{1, 0}, kInteger{1, 1}, kFused{2, 1};

  void put(int byte) { bytes_.push_back(static_cast<uint8_t>(byte)); }
  void put32(int32_t value) {
    for (int shift = 0; shift < 32; shift += 8) put(value >> shift & 0xFF);
  }
  // `reg` is the operand in ModRM.reg, `second` the one in vvvv, `rm` the register or pointer in ModRM.rm.
  void prefix(Form form, int reg, int second, int rm, bool is_broadcast);
  // Offsets of -128 to 127 operands take one byte, others four.
  void memory_form(Form form, int opcode, int reg, int second, Address at, int32_t operand_bytes,
                   bool is_broadcast = false);

  std::vector<uint8_t> bytes_;
};

}  // namespace sparsecore::jit
