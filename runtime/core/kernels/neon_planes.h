// What the integer kernels of ARM have in common. A register of a line is 4 rows of 4 bytes; taken apart, it is planes
// of 4 rows by 4 inputs each, with one code in a byte.
#pragma once

#include "kernels/neon_lanes.h"

namespace mote {
namespace {

constexpr size_t kRegisterBytes = 16;

/// A constant that stays in its register. Compilers would make it anew for each line, in the units of the products.
inline uint8x16_t kept(uint8x16_t v) {
  asm("" : "+w"(v));
  return v;
}
inline uint8x16_t kept_byte(uint8_t v) { return kept(vdupq_n_u8(v)); }

/// planes() takes a register apart; kSign is what it multiplies the codes by.
template <class Format>
struct Unpacker;

template <>
struct Unpacker<TwoBit> {
  static constexpr int kSign = 1;
  uint8x16_t mask = kept_byte(3);

  void planes(uint8x16_t codes, int8x16_t (&plane)[4]) const {
    plane[0] = vreinterpretq_s8_u8(vandq_u8(codes, mask));
    plane[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 2), mask));
    plane[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), mask));
    plane[3] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 6));
  }
};

/// Minus one trit of the numbers 0 to 26, in the two registers that one table lookup takes.
struct MinusTrit {
  uint8x16x2_t table;

  explicit MinusTrit(int power) {
    uint8_t of[2 * kRegisterBytes];
    for (int v = 0; v < 32; ++v) of[v] = static_cast<uint8_t>(-(v / power % 3));
    table = {{kept(vld1q_u8(of)), kept(vld1q_u8(of + kRegisterBytes))}};
  }
  int8x16_t operator[](uint8x16_t v) const { return vreinterpretq_s8_u8(vqtbl2q_u8(table, v)); }
};

template <>
struct Unpacker<OneSixBit> {
  static constexpr int kSign = -1;  // trits come out of comparisons, whose "true" is -1
  uint8x16_t largest = kept_byte(242);
  uint8x16_t once_81 = kept_byte(81), twice_81 = kept_byte(162);
  uint8x16_t once_27 = kept_byte(27), twice_27 = kept_byte(54);
  MinusTrit of_1{1}, of_3{3}, of_9{9};

  void planes(uint8x16_t codes, int8x16_t (&plane)[5]) const {
    uint8x16_t v = vminq_u8(codes, largest);
    plane[4] = take_trit(&v, once_81, twice_81);
    plane[3] = take_trit(&v, once_27, twice_27);
    plane[2] = of_9[v];
    plane[1] = of_3[v];
    plane[0] = of_1[v];
  }
  /// For v below 3 * once: minus its trit, which comes off v.
  static int8x16_t take_trit(uint8x16_t* v, uint8x16_t once, uint8x16_t twice) {
    const uint8x16_t minus_trit = vaddq_u8(vcgeq_u8(*v, once), vcgeq_u8(*v, twice));
    *v = vmlaq_u8(*v, minus_trit, once);
    return vreinterpretq_s8_u8(minus_trit);
  }
};

template <>
struct Unpacker<Int4> {
  static constexpr int kSign = 1;
  uint8x16_t mask = kept_byte(15);

  void planes(uint8x16_t codes, int8x16_t (&plane)[2]) const {
    plane[0] = vreinterpretq_s8_u8(vandq_u8(codes, mask));
    plane[1] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 4));
  }
};

template <>
struct Unpacker<Int8> {
  static constexpr int kSign = 1;

  void planes(uint8x16_t codes, int8x16_t (&plane)[1]) const { plane[0] = vreinterpretq_s8_u8(codes); }
};

/// acc[t] += sum code * q by Kernel, which takes some of the four registers of each line at once:
/// registers_at_once<Format>(tokens)                                how many: 4, 2 or 1
/// add_registers<Format, T, R>(lines, num_lines, inputs, i, acc)    adds to registers i to i + R - 1 of acc
template <class Kernel, class Format, int T>
inline void dot_by_registers(const uint8_t* lines, size_t num_lines, const int8_t* inputs, IntLanes (&acc)[T]) {
  constexpr int kAtOnce = Kernel::template registers_at_once<Format>(T);
  if constexpr (kAtOnce == kRegisters) {
    Kernel::template add_registers<Format, T, kAtOnce>(lines, num_lines, inputs, 0, acc);
  } else {
    // Lines that stay in the first cache with their inputs, while one register of them after the other is taken.
    constexpr size_t kLinesAtOnce = 32;
    for (size_t begin = 0; begin < num_lines; begin += kLinesAtOnce) {
      const uint8_t* some = lines + begin * kLineBytes;
      const size_t count = num_lines - begin < kLinesAtOnce ? num_lines - begin : kLinesAtOnce;
      for (size_t line = 0; line < count; ++line) prefetch_ahead(some + line * kLineBytes);
      for (int first = 0; first < kRegisters; first += kAtOnce) {
        Kernel::template add_registers<Format, T, kAtOnce>(
            some, count, inputs + begin * (Format::kPlanes * kPlaneInputs * T), first, acc);
      }
    }
  }
}

}  // namespace
}  // namespace mote
