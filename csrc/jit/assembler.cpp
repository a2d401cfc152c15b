#include "jit/assembler.h"

namespace sparsecore::jit {
namespace {

// ModRM.mod, and the number of a base or an index that stands for something else there.
constexpr int kNoOffset = 0x00, kOffset8 = 0x40, kOffset32 = 0x80, kDirect = 0xC0;
constexpr int kSib = 4, kNoBase = 5;

int number(Register reg) { return static_cast<int>(reg); }
int low(int reg) { return reg & 7; }

}  // namespace

// Bits of register numbers beyond the third are stored inverted. Intel SDM, volume 2, section 2.7.1.
void Assembler::evex(Form form, int reg, int second, int base, int index, bool is_broadcast) {
  const auto inverted = [](int number, int bit) { return (number >> bit & 1) ^ 1; };
  put(0x62);
  put(inverted(reg, 3) << 7 | inverted(index, 3) << 6 | inverted(base, 3) << 5 | inverted(reg, 4) << 4 | form.map);
  put((~second & 0xF) << 3 | 1 << 2 | form.prefix);
  put(2 << 5 | int{is_broadcast} << 4 | inverted(second, 4) << 3);
}

void Assembler::address(int reg, Address at, int32_t operand_bytes) {
  const int base = low(number(at.base));
  const bool has_index = at.index != Register::rsp, has_sib = has_index || base == kSib;
  const int32_t operands = at.offset / operand_bytes;
  const bool is_short = at.offset % operand_bytes == 0 && operands >= -128 && operands <= 127;
  const int mod = at.offset == 0 && base != kNoBase ? kNoOffset : is_short ? kOffset8 : kOffset32;
  put(mod | low(reg) << 3 | (has_sib ? kSib : base));
  if (has_sib) put(low(number(at.index)) << 3 | base);
  if (mod == kOffset8) put(operands & 0xFF);
  if (mod == kOffset32) put32(at.offset);
}

void Assembler::memory_form(Form form, int opcode, int reg, int second, Address at, int32_t operand_bytes,
                            bool is_broadcast) {
  evex(form, reg, second, number(at.base), at.index == Register::rsp ? 0 : number(at.index), is_broadcast);
  put(opcode);
  address(reg, at, operand_bytes);
}

// The fifth bit of a register in ModRM.rm is where the fourth of an index would be.
void Assembler::register_form(Form form, int opcode, int reg, int second, int third) {
  evex(form, reg, second, third, third >> 1, false);
  put(opcode);
  put(kDirect | low(reg) << 3 | low(third));
}

// REX: 64 bits, and the fourth bits of ModRM.reg and of ModRM.rm or the base. Addresses of words have no index here.
void Assembler::load(Register to, Address from) {
  put(0x48 | number(to) >> 3 << 2 | number(from.base) >> 3);
  put(0x8B);
  address(number(to), from, 1);
}

void Assembler::add(Register to, int32_t bytes) {
  put(0x48 | number(to) >> 3);
  put(0x81);
  put(kDirect | low(number(to)));
  put32(bytes);
}

void Assembler::add(Register to, Register by) {
  put(0x48 | number(by) >> 3 << 2 | number(to) >> 3);
  put(0x01);
  put(kDirect | low(number(by)) << 3 | low(number(to)));
}

void Assembler::one_byte_form(int opcode, Register reg) {
  if (number(reg) >= 8) put(0x41);
  put(opcode | low(number(reg)));
}

}  // namespace sparsecore::jit
