// The few x86-64 instructions that generated code consists of: on whole vectors of AVX-512, and on pointers.
#pragma once

#include <cstdint>
#include <vector>

namespace sparsecore::jit {

// As instructions number them; rsp is the stack's.
enum class Register : uint8_t { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 };

// The first arguments of the System V calling convention, and what a function has to give back unchanged.
inline constexpr Register kArguments[] = {Register::rdi, Register::rsi, Register::rdx, Register::rcx};
constexpr bool is_callee_saved(Register reg) {
  return reg == Register::rbx || reg == Register::rbp || reg >= Register::r12;
}

struct Address {
  Register base;
  int32_t offset = 0;              // bytes
  Register index = Register::rsp;  // of bytes; rsp: none
};

inline constexpr int32_t kVectorBytes = 64;

class Assembler {
 public:
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  void load(int to, Address from) { memory_form(kPlain, 0x10, to, 0, from, kVectorBytes); }   // vmovups
  void store(Address to, int from) { memory_form(kPlain, 0x11, from, 0, to, kVectorBytes); }  // vmovups
  void zero(int reg) { register_form(kInteger, 0xEF, reg, reg, reg); }                        // vpxord
  // sum += a * b, where b is one float for all lanes: vfmadd231ps
  void fma_broadcast(int sum, int a, Address b) { memory_form(kFused, 0xB8, sum, a, b, sizeof(float), true); }
  void broadcast(int to, Address from) { memory_form(kFused, 0x18, to, 0, from, sizeof(float)); }  // vbroadcastss
  void add(int sum, Address by) { memory_form(kPlain, 0x58, sum, sum, by, kVectorBytes); }         // vaddps
  void add_broadcast(int sum, Address by) { memory_form(kPlain, 0x58, sum, sum, by, sizeof(float), true); }
  // NaN if x is NaN: both give their second operand then.
  void max(int x, int least) { register_form(kPlain, 0x5F, x, least, x); }  // vmaxps
  void min(int x, int most) { register_form(kPlain, 0x5D, x, most, x); }    // vminps

  void load(Register to, Address from);  // mov
  void add(Register to, int32_t bytes);  // add
  void add(Register to, Register by);    // add
  void push(Register reg) { one_byte_form(0x50, reg); }
  void pop(Register reg) { one_byte_form(0x58, reg); }
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
  // `reg` is the operand in ModRM.reg, `second` the one in vvvv; base and index of an address, or the two upper parts
  // of a register, are what their fourth bits belong to.
  void evex(Form form, int reg, int second, int base, int index, bool is_broadcast);
  void memory_form(Form form, int opcode, int reg, int second, Address at, int32_t operand_bytes,
                   bool is_broadcast = false);
  // ModRM and what follows it. Offsets of -128 to 127 operands take one byte, others four.
  void address(int reg, Address at, int32_t operand_bytes);
  void register_form(Form form, int opcode, int reg, int second, int third);
  void one_byte_form(int opcode, Register reg);

  std::vector<uint8_t> bytes_;
};

}  // namespace sparsecore::jit
