#include "jit/assembler.h"

namespace sparsecore::jit {

// Bits of register numbers beyond the third are stored inverted. Intel SDM, volume 2, section 2.7.1.
void Assembler::prefix(Form form, int reg, int second, int rm, bool is_broadcast) {
  const auto inverted = [](int number, int bit) { return (number >> bit & 1) ^ 1; };
  put(0x62);
  put(inverted(reg, 3) << 7 | inverted(rm, 4) << 6 | inverted(rm, 3) << 5 | inverted(reg, 4) << 4 | form.map);
  put((~second & 0xF) << 3 | 1 << 2 | form.prefix);
  put(2 << 5 | int{is_broadcast} << 4 | inverted(second, 4) << 3);
}

void Assembler::memory_form(Form form, int opcode, int reg, int second, Address at, int32_t operand_bytes,
                            bool is_broadcast) {
  prefix(form, reg, second, static_cast<int>(at.base), is_broadcast);
  put(opcode);
  const int registers = (reg & 7) << 3 | static_cast<int>(at.base);
  const int32_t operands = at.offset / operand_bytes;
  if (at.offset % operand_bytes == 0 && operands >= -128 && operands <= 127) {
    put(0x40 | registers);
    put(operands & 0xFF);
  } else {
    put(0x80 | registers);
    put32(at.offset);
  }
}

void Assembler::zero(int reg) {
  prefix(kInteger, reg, reg, reg, false);
  put(0xEF);
  put(0xC0 | (reg & 7) << 3 | (reg & 7));
}

void Assembler::advance(Pointer pointer, int32_t bytes) {
  put(0x48);
  put(0x81);
  put(0xC0 | static_cast<int>(pointer));
  put32(bytes);
}

}  // namespace sparsecore::jit
