// A register of a line, which is 4 rows of 4 bytes, taken apart into planes: 4 rows by 4 inputs each, one code in a byte. For
// the ISA files of ARM.
#pragma once

#include <arm_neon.h>

#include "kernels/formats.h"

namespace mote {
namespace {

constexpr size_t kRegisterBytes = 16;

/// What unpack() multiplies the codes by. Trits come out of comparisons, whose "true" is -1.
template <class Format>
constexpr int kSign = 1;
template <>
constexpr int kSign<OneSixBit> = -1;

inline void unpack(TwoBit, uint8x16_t codes, int8x16_t (&planes)[4]) {
  const uint8x16_t mask = vdupq_n_u8(3);
  planes[0] = vreinterpretq_s8_u8(vandq_u8(codes, mask));
  planes[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 2), mask));
  planes[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), mask));
  planes[3] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 6));
}

/// For v below 3 * power: minus its trit, which comes off v.
inline uint8x16_t take_trit(uint8x16_t* v, uint8_t power) {
  const uint8x16_t at_least_1 = vcgeq_u8(*v, vdupq_n_u8(power));
  const uint8x16_t at_least_2 = vcgeq_u8(*v, vdupq_n_u8(static_cast<uint8_t>(2 * power)));
  const uint8x16_t minus_trit = vaddq_u8(at_least_1, at_least_2);
  *v = vmlaq_u8(*v, minus_trit, vdupq_n_u8(power));
  return minus_trit;
}

/// Minus the trit `plane` of the numbers 0 to 26, in the two registers that one table lookup takes.
struct MinusTrit {
  alignas(16) int8_t of[32] = {};

  constexpr explicit MinusTrit(int power) {
    for (int v = 0; v < 27; ++v) of[v] = static_cast<int8_t>(-(v / power % 3));
  }
  int8x16_t operator[](uint8x16_t v) const { return vqtbl2q_s8({{vld1q_s8(of), vld1q_s8(of + kRegisterBytes)}}, v); }
};
constexpr MinusTrit kMinusTrit0(1), kMinusTrit1(3), kMinusTrit2(9);

inline void unpack(OneSixBit, uint8x16_t codes, int8x16_t (&planes)[5]) {
  constexpr uint8_t kLargest = 242;
  uint8x16_t v = vminq_u8(codes, vdupq_n_u8(kLargest));
  planes[4] = vreinterpretq_s8_u8(take_trit(&v, 81));
  planes[3] = vreinterpretq_s8_u8(take_trit(&v, 27));
  planes[2] = kMinusTrit2[v];
  planes[1] = kMinusTrit1[v];
  planes[0] = kMinusTrit0[v];
}

inline void unpack(Int4, uint8x16_t codes, int8x16_t (&planes)[2]) {
  planes[0] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15)));
  planes[1] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 4));
}

inline void unpack(Int8, uint8x16_t codes, int8x16_t (&planes)[1]) { planes[0] = vreinterpretq_s8_u8(codes); }

}  // namespace
}  // namespace mote
