// Dot products by sdot, which multiplies 4 rows by 4 inputs: what neon_dotprod.cpp and neon_i8mm.cpp have in common.
#pragma once

#include "kernels/neon_lanes.h"
#include "kernels/neon_unpack.h"

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

/// N words in registers of four, with no byte read beyond them.
template <int N>
struct Words {
  static constexpr int kRegister = 4;
  int8x16_t v[(N + kRegister - 1) / kRegister];

  explicit Words(const int8_t* p) {
    constexpr int kFull = N / kRegister;
    constexpr int kRest = N % kRegister;
#pragma GCC unroll 32
    for (int i = 0; i < kFull; ++i) v[i] = vld1q_s8(p + i * kRegisterBytes);
    if constexpr (kRest == 0) {
      return;
    } else if constexpr (kFull > 0) {
      v[kFull] = vld1q_s8(p + N * 4 - kRegisterBytes);  // overlaps the one before
    } else {
      int8_t padded[kRegisterBytes] = {};
      __builtin_memcpy(padded, p, N * 4);
      v[0] = vld1q_s8(padded);
    }
  }
  int32x4_t dot(int32x4_t sum, int8x16_t codes, int word) const {
    const int i = word / kRegister;
    const int first = N >= kRegister && (i + 1) * kRegister > N ? N - kRegister : i * kRegister;
    return dot_word(sum, codes, v[i], word - first);
  }
};

/// How many codes of 2bit are summed where they stand in their byte, times 4 and times 16, which saves two of the six
/// operations that take a byte apart, but takes as many registers again for each place.
template <class Format>
constexpr int places(int) {
  return 1;
}
template <>
constexpr int places<TwoBit>(int tokens) {
  return tokens <= 8 ? 3 : 1;
}

template <int kPlaces, class Format>
inline void unpack_in_places(Format format, uint8x16_t codes, int8x16_t (&planes)[Format::kPlanes]) {
  if constexpr (kPlaces == 1) {
    unpack(format, codes, planes);
  } else {
    planes[0] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(3)));
    planes[1] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(3 << 2)));
    planes[2] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(3 << 4)));
    planes[3] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 6));  // times 64, it would be negative
  }
}

/// Registers of a line that are taken at once, so that all sums stay in the 32 registers beside planes, inputs and constants.
template <class Format>
constexpr int registers_at_once(int tokens) {
  constexpr int kMaxSums = Format::kPlanes == 5 ? 10 : 24;
  const int sums = tokens * places<Format>(tokens);
  return 4 * sums <= kMaxSums ? 4 : 2 * sums <= kMaxSums ? 2 : 1;
}

/// acc[t] += sum code * q, for R registers of each line from `first` on.
template <class Format, int T, int R>
inline void add_registers(const uint8_t* lines, size_t num_lines, const int8_t* inputs, int first, IntLanes (&acc)[T]) {
  constexpr int kPlanes = Format::kPlanes;
  constexpr int kPlaces = places<Format>(T);
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
    const Words<kPlanes * T> words(inputs + line * (kPlanes * kPlaneInputs * T));
    const uint8_t* codes = lines + line * kLineBytes + first * kRegisterBytes;
    if (R == kRegisters || first == 0) prefetch_ahead(codes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int8x16_t planes[kPlanes];
      unpack_in_places<kPlaces>(Format(), vld1q_u8(codes + r * kRegisterBytes), planes);
#pragma GCC unroll 5
      for (int plane = 0; plane < kPlanes; ++plane) {
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          int32x4_t& place = sum[t][r][plane % kPlanes == 3 ? 0 : plane % kPlaces];
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
      to = kSign<Format> > 0 ? vaddq_s32(to, total) : vsubq_s32(to, total);
    }
  }
}

/// See the head of layer_kernels.h.
template <class Format, int T>
inline void dot_by_sdot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, IntLanes (&acc)[T]) {
  constexpr int kAtOnce = registers_at_once<Format>(T);
  // Some lines, of which one register after the other is taken while they and their inputs are in the first cache.
  constexpr size_t kLinesAtOnce = kAtOnce == kRegisters ? SIZE_MAX : 32;
  for (size_t begin = 0; begin < num_lines; begin += kLinesAtOnce) {
    const size_t left = num_lines - begin;
    const size_t count = left < kLinesAtOnce ? left : kLinesAtOnce;
    for (int first = 0; first < kRegisters; first += kAtOnce) {
      add_registers<Format, T, kAtOnce>(lines + begin * kLineBytes, count,
                                        inputs + begin * (Format::kPlanes * kPlaneInputs * T), first, acc);
    }
    if constexpr (kAtOnce == kRegisters) break;
  }
}

}  // namespace
}  // namespace mote
