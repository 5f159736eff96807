// 64-bit ARM without extensions (Cortex-A53, A72): products of bytes are summed in 16 bits, and now and then in 32.
#include "kernels/neon_planes.h"
#include "kernels/tables.h"

namespace mote {
namespace {

/// Lines that a sum of 16 bits can take: each plane adds a product of a code and an activation (-128 to 127).
template <class Format>
constexpr size_t lines_before_widening() {
  constexpr int kLargestCode = Format::kZero == 0 ? Format::kMaxCode + 1 : Format::kMaxCode;  // if signed, -128 occurs
  return static_cast<size_t>(INT16_MAX / (kLargestCode * 128) / Format::kPlanes);
}
static_assert(lines_before_widening<TwoBit>() == 21 && lines_before_widening<OneSixBit>() == 25 &&
                  lines_before_widening<Int4>() == 8 && lines_before_widening<Int8>() == 1,
              "not what docs/kernels.md says");

struct Smlal {
  template <class Format>
  static constexpr int registers_at_once(int tokens) {
    return tokens == 1 && Format::kPlanes < 5 ? 4 : tokens <= 2 ? 2 : 1;
  }

  template <class Format, int T, int R>
  static void add_registers(const uint8_t* lines, size_t num_lines, const int8_t* inputs, int first,
                            IntLanes (&acc)[T]) {
    constexpr size_t kLines = lines_before_widening<Format>();
    const Unpacker<Format> unpacker;
    const uint8_t* codes = lines + first * kRegisterBytes;
    for (size_t begin = 0; begin < num_lines; begin += kLines) {
      const size_t count = num_lines - begin < kLines ? num_lines - begin : kLines;
      Sums<T, R> sums;
      for (size_t line = 0; line < count; ++line) {
        if constexpr (R == kRegisters) prefetch_ahead(codes);
        add_line<Format>(unpacker, codes, inputs, &sums);
        codes += kLineBytes;
        inputs += Format::kPlanes * kPlaneInputs * T;
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          int32x4_t& to = acc[t].v[first + r];
          const int32x4_t rows = vpaddq_s32(vpaddlq_s16(sums.low[t][r]), vpaddlq_s16(sums.high[t][r]));
          to = unpacker.kSign > 0 ? vaddq_s32(to, rows) : vsubq_s32(to, rows);
        }
      }
    }
  }

  /// Of each register, the products of its first and of its last two rows.
  template <int T, int R>
  struct Sums {
    int16x8_t low[T][R], high[T][R];

    Sums() {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) low[t][r] = high[t][r] = vdupq_n_s16(0);
      }
    }
  };

  template <class Format, int T, int R>
  static void add_line(const Unpacker<Format>& unpacker, const uint8_t* codes, const int8_t* inputs, Sums<T, R>* sums) {
    int8x16_t planes[R][Format::kPlanes];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) unpacker.planes(vld1q_u8(codes + r * kRegisterBytes), planes[r]);
#pragma GCC unroll 5
    for (int plane = 0; plane < Format::kPlanes; ++plane) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        int32_t word;
        __builtin_memcpy(&word, inputs + kPlaneInputs * (plane * T + t), sizeof(word));
        const int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(word));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          sums->low[t][r] = vmlal_s8(sums->low[t][r], vget_low_s8(planes[r][plane]), vget_low_s8(q));
          sums->high[t][r] = vmlal_high_s8(sums->high[t][r], planes[r][plane], q);
        }
      }
    }
  }
};

struct Neon {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 4;
  static constexpr int kFloatTileTokens = 2;

  template <class Format>
  static constexpr int32_t code_offset() {
    return 0;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    dot_by_registers<Smlal, Format, T>(lines, num_lines, inputs, acc);
  }
};

}  // namespace

extern const KernelTable neon_kernels = LayerKernels<Neon>::table();

}  // namespace mote
