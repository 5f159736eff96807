// AVX2 with VNNI in its VEX form (Alder Lake and its small siblings, which have no AVX-512): vpdpbusd on 8 rows by 4 inputs.
#include "kernels/avx2_lanes.h"
#include "kernels/tables.h"

namespace mote {
namespace {

struct AvxVnni {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 8;
  static constexpr int kFloatTileTokens = 2;

  /// Lines whose first halves are taken before their second halves: half a line at a time, so that the sums of all tokens fit
  /// the 16 registers, and few enough that the second halves are still in the first cache.
  static constexpr size_t kLinesAtOnce = 16;

  /// vpdpbusd takes unsigned codes: signed ones are offset by flipping their top bit.
  template <class Format>
  static constexpr int32_t code_offset() {
    return Format::kFormat == WeightFormat::kInt8 ? 128 : 0;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    for (size_t begin = 0; begin < num_lines; begin += kLinesAtOnce) {
      const size_t left = num_lines - begin;
      const size_t count = left < kLinesAtOnce ? left : kLinesAtOnce;
      for (size_t line = 0; line < count; ++line) prefetch_ahead(lines + line * kLineBytes);
      add_half_lines<Format, T, &Int::low>(lines, count, inputs, acc);
      add_half_lines<Format, T, &Int::high>(lines + kLineBytes / 2, count, inputs, acc);
      lines += count * kLineBytes;
      inputs += count * kPlaneInputs * Format::kPlanes * T;
    }
  }

  template <class Format, int T, __m256i IntLanes::*Half>
  static void add_half_lines(const uint8_t* lines, size_t count, const int8_t* inputs, Int (&acc)[T]) {
    // vpdpbusd takes 4 or 5 cycles and two start in each.
    constexpr int kChains = T >= 4 ? 1 : T > 1 && Format::kPlanes > 2 ? 2 : Format::kPlanes;
    __m256i sum[T][kChains];
    unroll<T>([&](auto t) {
      sum[t.value][0] = acc[t.value].*Half;
      unroll<kChains - 1>([&](auto c) { sum[t.value][c.value + 1] = _mm256_setzero_si256(); });
    });
    for (size_t line = 0; line < count; ++line) {
      __m256i planes[Format::kPlanes];
      const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines + line * kLineBytes));
      unpack(Format(), flip_sign(Format(), codes), planes);
      unroll<Format::kPlanes>([&](auto plane) {
        unroll<T>([&](auto t) {
          __m256i& chain = sum[t.value][plane.value % kChains];
          chain = multiply_add(chain, planes[plane.value], broadcast_four(inputs + kPlaneInputs * (plane.value * T + t.value)));
        });
      });
      inputs += kPlaneInputs * Format::kPlanes * T;
    }
    unroll<T>([&](auto t) {
      acc[t.value].*Half = sum[t.value][0];
      unroll<kChains - 1>([&](auto c) {
        acc[t.value].*Half = _mm256_add_epi32(acc[t.value].*Half, sum[t.value][c.value + 1]);
      });
    });
  }

  static __m256i multiply_add(__m256i sum, __m256i codes, __m256i q) {
    // Not the intrinsic: gcc 12 copies every sum to another register and back around it.
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(q));
    return sum;
  }

  template <class Format>
  static __m256i flip_sign(Format, __m256i codes) {
    return codes;
  }
  static __m256i flip_sign(Int8, __m256i codes) { return _mm256_xor_si256(codes, _mm256_set1_epi8(INT8_MIN)); }
};

}  // namespace

extern const KernelTable avxvnni_kernels = LayerKernels<AvxVnni>::table();

}  // namespace mote
