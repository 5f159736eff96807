// Dot products by sdot, which multiplies 4 rows by 4 inputs: what neon_dotprod.cpp and neon_i8mm.cpp have in common.
#pragma once

#include "kernels/neon_planes.h"

namespace mote {
namespace {

/// vdotq_laneq_s32, which takes its lane only as a constant expression.
inline int32x4_t dot_word(int32x4_t sum, int8x16_t codes, int8x16_t inputs, int lane) {
  switch (lane) {
    case 0: return vdotq_laneq_s32(sum, codes, inputs, 0);
    case 1: return vdotq_laneq_s32(sum, codes, inputs, 1);
    case 2: return vdotq_laneq_s32(sum, codes, inputs, 2);
    default: return vdotq_laneq_s32(sum, codes, inputs, 3);
  }
}

/// N words of inputs, which are loaded where they are multiplied, four at once, with no byte read beyond them.
template <int N>
struct Words {
  static constexpr int kRegister = 4;
  const int8_t* p;

  /// sum + codes by the four inputs of `word`.
  int32x4_t dot(int32x4_t sum, int8x16_t codes, int word) const {
    if constexpr (N < kRegister) {
      int32_t bits;
      __builtin_memcpy(&bits, p + kPlaneInputs * word, sizeof(bits));
      return vdotq_s32(sum, codes, vreinterpretq_s8_s32(vdupq_n_s32(bits)));
    } else {
      int first = word / kRegister * kRegister;
      if (first > N - kRegister) first = N - kRegister;
      return dot_word(sum, codes, vld1q_s8(p + kPlaneInputs * first), word - first);
    }
  }
};

/// How planes are summed: all into one sum, or those of 2bit where they stand in their byte, times 4 and times 16. That
/// saves two of six operations that take a byte apart, but takes three times the registers for sums.
template <class Format, int kPlaces>
struct Placed : Unpacker<Format> {
  static_assert(kPlaces == 1, "only 2bit has places");
};

template <>
struct Placed<TwoBit, 3> {
  static constexpr int kSign = 1;
  uint8x16_t first = kept_byte(3), second = kept_byte(3 << 2), third = kept_byte(3 << 4);

  void planes(uint8x16_t codes, int8x16_t (&plane)[4]) const {
    plane[0] = vreinterpretq_s8_u8(vandq_u8(codes, first));
    plane[1] = vreinterpretq_s8_u8(vandq_u8(codes, second));
    plane[2] = vreinterpretq_s8_u8(vandq_u8(codes, third));
    plane[3] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 6));  // where it stands, it would be negative
  }
};

template <class Format>
constexpr int places(int tokens) {
  return Format::kPlanes == 4 && tokens <= 7 ? 3 : 1;
}

struct Sdot {
  /// So many that all sums stay in the 32 registers, beside planes, inputs and constants.
  template <class Format>
  static constexpr int registers_at_once(int tokens) {
    constexpr int kMaxSums = Format::kPlanes == 5 ? 10 : Format::kPlanes == 1 ? 24 : 18;
    const int sums = tokens * places<Format>(tokens);
    return 4 * sums <= kMaxSums ? 4 : 2 * sums <= kMaxSums ? 2 : 1;
  }

  template <class Format, int T, int R>
  static void add_registers(const uint8_t* lines, size_t num_lines, const int8_t* inputs, int first,
                            IntLanes (&acc)[T]) {
    constexpr int kPlanes = Format::kPlanes;
    constexpr int kPlaces = places<Format>(T);
    const Placed<Format, kPlaces> unpacker;
    int32x4_t sum[T][R][kPlaces];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
        for (int i = 0; i < kPlaces; ++i) sum[t][r][i] = vdupq_n_s32(0);
      }
    }
    for (size_t line = 0; line < num_lines; ++line) {
      const Words<kPlanes * T> words{inputs + line * (kPlanes * kPlaneInputs * T)};
      const uint8_t* codes = lines + line * kLineBytes + first * kRegisterBytes;
      if constexpr (R == kRegisters) prefetch_ahead(codes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int8x16_t planes[kPlanes];
        unpacker.planes(vld1q_u8(codes + r * kRegisterBytes), planes);
#pragma GCC unroll 5
        for (int plane = 0; plane < kPlanes; ++plane) {
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) {
            int32x4_t& place = sum[t][r][plane == 3 ? 0 : plane % kPlaces];
            place = words.dot(place, planes[plane], plane * T + t);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int32x4_t total = sum[t][r][0];
        if constexpr (kPlaces > 1) {
          total = vsraq_n_s32(vsraq_n_s32(total, sum[t][r][1], 2), sum[t][r][2], 4);
        }
        int32x4_t& to = acc[t].v[first + r];
        to = unpacker.kSign > 0 ? vaddq_s32(to, total) : vsubq_s32(to, total);
      }
    }
  }
};

}  // namespace
}  // namespace mote
