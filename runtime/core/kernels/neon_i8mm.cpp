// ARM with matrix products of bytes (FEAT_I8MM: Cortex-A510, A710, X2 and newer): smmla multiplies 2 rows by 2 tokens
// by 8 inputs, twice the work of sdot. Up to four tokens do not repay the bringing of rows and tokens into that order.
#include "kernels/neon_sdot.h"
#include "kernels/tables.h"

namespace mote {
namespace {

/// Operands of smmla are two rows of 8 inputs. A plane has four rows of 4, so two planes give two operands.
struct RowPairs {
  int8x16_t low, high;

  RowPairs(int8x16_t plane, int8x16_t next)
      : low(vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(plane), vreinterpretq_s32_s8(next)))),
        high(vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(plane), vreinterpretq_s32_s8(next)))) {}
};

/// Takes a step of lines apart: one line, or two where the planes of one are odd in number. octets() passes each pair
/// of planes to `use`, with the number of its eight inputs and the place of its codes (see Placed).
template <class Format, int kPlaces>
struct OctetUnpacker {
  static_assert(kPlaces == 1, "only 2bit has places");
  static constexpr int kSign = Unpacker<Format>::kSign;
  static constexpr int kPlanes = Format::kPlanes;
  static constexpr int kLines = kPlanes % 2 == 0 ? 1 : 2;
  static constexpr int kOctets = kLines * kPlanes / 2;
  Unpacker<Format> unpacker;

  template <class Use>
  void octets(const uint8_t* codes, const uint8_t* next_codes, Use use) const {
    int8x16_t plane[2][kPlanes];
    unpacker.planes(vld1q_u8(codes), plane[0]);
    if constexpr (kLines == 2) unpacker.planes(vld1q_u8(next_codes), plane[1]);
#pragma GCC unroll 5
    for (int i = 0; i < kOctets; ++i) {
      const int a = 2 * i, b = a + 1;
      use(i, 0, RowPairs(plane[a / kPlanes][a % kPlanes], plane[b / kPlanes][b % kPlanes]));
    }
  }
};

/// 2bit is paired before it is taken apart; planes 2 and 3 are multiplied where they stand, times 16.
template <>
struct OctetUnpacker<TwoBit, 2> {
  static constexpr int kSign = 1;
  static constexpr int kLines = 1;
  static constexpr int kOctets = 2;
  uint8x16_t first = kept_byte(3), second = kept_byte(3 << 4);

  template <class Use>
  void octets(const uint8_t* codes, const uint8_t*, Use use) const {
    const uint8x16_t v = vld1q_u8(codes);
    RowPairs rows(vreinterpretq_s8_u8(v), vreinterpretq_s8_u8(vshrq_n_u8(v, 2)));
    use(0, 0, masked(rows, first));
    use(1, 1, masked(rows, second));
  }
  static RowPairs masked(RowPairs rows, uint8x16_t mask) {
    rows.low = vandq_s8(rows.low, vreinterpretq_s8_u8(mask));
    rows.high = vandq_s8(rows.high, vreinterpretq_s8_u8(mask));
    return rows;
  }
};

/// Inputs of two tokens by 8 inputs, for some lines: those of pair p and octet o are at [o * kPairs + p]. If the number
/// of tokens is odd, one is in two pairs.
template <class Format, int T>
struct PairedInputs {
  static constexpr int kPairs = (T + 1) / 2;
  static constexpr size_t kLines = 64 / (Format::kPlanes < 4 ? Format::kPlanes : 4);
  static constexpr size_t kMaxOctets = kLines * Format::kPlanes / 2;
  static constexpr int first_token(int pair) { return 2 * pair < T - 2 ? 2 * pair : T - 2; }

  int8x16_t pairs[kMaxOctets * kPairs];

  /// num_octets may exceed what the words fill; the rest becomes zero.
  PairedInputs(const int8_t* inputs, size_t num_words, size_t num_octets) {
    const size_t num_whole = num_words / 2;
    for (size_t i = 0; i < num_octets; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) {
        const int8_t* word = inputs + kPlaneInputs * (2 * i * T + first_token(p));
        const int8x16_t zero = vdupq_n_s8(0);
        const int8x16_t even = 2 * i < num_words ? two_words(word) : zero;
        const int8x16_t odd = i < num_whole ? two_words(word + kPlaneInputs * T) : zero;
        pairs[i * kPairs + p] = RowPairs(even, odd).low;
      }
    }
  }
  static int8x16_t two_words(const int8_t* p) { return vcombine_s8(vld1_s8(p), vdup_n_s8(0)); }
};

struct Smmla {
  template <class Format>
  static constexpr int places(int tokens) {
    return Format::kPlanes == 4 && tokens <= 8 ? 2 : 1;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, IntLanes (&acc)[T]) {
    using Paired = PairedInputs<Format, T>;
    constexpr size_t kWordsOfLine = Format::kPlanes;
    using Octets = OctetUnpacker<Format, places<Format>(T)>;
    for (size_t begin = 0; begin < num_lines; begin += Paired::kLines) {
      const uint8_t* some = lines + begin * kLineBytes;
      const size_t count = num_lines - begin < Paired::kLines ? num_lines - begin : Paired::kLines;
      for (size_t line = 0; line < count; ++line) prefetch_ahead(some + line * kLineBytes);
      const size_t num_octets = ceil_div(count, Octets::kLines) * Octets::kOctets;
      const Paired paired(inputs + begin * (kWordsOfLine * kPlaneInputs * T), count * kWordsOfLine, num_octets);
      for (int r = 0; r < kRegisters; ++r) {
        add_register<Format, T>(some + r * kRegisterBytes, count, paired.pairs, r, acc);
      }
    }
  }

  template <class Format, int T>
  static void add_register(const uint8_t* codes, size_t num_lines, const int8x16_t* pairs, int r, IntLanes (&acc)[T]) {
    using Paired = PairedInputs<Format, T>;
    constexpr int kPairs = Paired::kPairs;
    constexpr int kPlaces = places<Format>(T);
    const OctetUnpacker<Format, kPlaces> unpacker;
    int32x4_t low[kPlaces][kPairs], high[kPlaces][kPairs];
#pragma GCC unroll 2
    for (int place = 0; place < kPlaces; ++place) {
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; ++p) low[place][p] = high[place][p] = vdupq_n_s32(0);
    }
    for (size_t line = 0; line < num_lines; line += unpacker.kLines) {
      const uint8_t* now = codes + line * kLineBytes;
      // The inputs of a line that is not there are zero: any line does.
      const uint8_t* next = line + 1 < num_lines ? now + kLineBytes : now;
      unpacker.octets(now, next, [&](int octet, int place, RowPairs rows) {
#pragma GCC unroll 8
        for (int p = 0; p < kPairs; ++p) {
          const int8x16_t q = pairs[octet * kPairs + p];
          low[place][p] = vmmlaq_s32(low[place][p], rows.low, q);
          high[place][p] = vmmlaq_s32(high[place][p], rows.high, q);
        }
      });
      pairs += unpacker.kOctets * kPairs;
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; ++p) {
      int32x4_t rows_0_1 = low[0][p], rows_2_3 = high[0][p];
      if constexpr (kPlaces == 2) {
        rows_0_1 = vsraq_n_s32(rows_0_1, low[1][p], 4);
        rows_2_3 = vsraq_n_s32(rows_2_3, high[1][p], 4);
      }
      // A sum holds row 0 by token 0, row 0 by token 1, row 1 by token 0 and row 1 by token 1.
      add<OctetUnpacker<Format, kPlaces>::kSign>(&acc[Paired::first_token(p)].v[r], vuzp1q_s32(rows_0_1, rows_2_3),
                                                 p > 0 && Paired::first_token(p) % 2 != 0);
      add<OctetUnpacker<Format, kPlaces>::kSign>(&acc[Paired::first_token(p) + 1].v[r], vuzp2q_s32(rows_0_1, rows_2_3),
                                                 false);
    }
  }

  template <int kSign>
  static void add(int32x4_t* to, int32x4_t sum, bool counted_before) {
    if (!counted_before) *to = kSign > 0 ? vaddq_s32(*to, sum) : vsubq_s32(*to, sum);
  }
};

struct NeonI8mm {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 16;
  static constexpr int kFloatTileTokens = 2;
  static constexpr int kLeastTokens = 5;

  template <class Format>
  static constexpr int32_t code_offset() {
    return 0;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    if constexpr (T < kLeastTokens) {
      dot_by_registers<Sdot, Format, T>(lines, num_lines, inputs, acc);
    } else {
      Smmla::dot<Format, T>(lines, num_lines, inputs, acc);
    }
  }
};

}  // namespace

extern const KernelTable neon_i8mm_kernels = LayerKernels<NeonI8mm>::table();

}  // namespace mote
