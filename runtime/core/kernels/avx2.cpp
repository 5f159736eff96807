// AVX2: integer products go through vpmaddubsw and vpmaddwd.
#include "kernels/avx2_lanes.h"
#include "kernels/tables.h"

namespace mote {
namespace {

struct Avx2 {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 8;
  static constexpr int kFloatTileTokens = 2;

  template <class Format>
  static constexpr int32_t code_offset() {
    return 0;
  }

  /// vpmaddubsw adds two products of a code and an activation (-128..127), so it does not saturate. Each int16 lane takes one
  /// such sum for each plane of each line before it is widened.
  template <class Format>
  static constexpr size_t lines_before_widening() {
    return INT16_MAX / (2 * 128 * Format::kMaxCode * Format::kPlanes);
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    constexpr size_t kLinesBeforeWidening = lines_before_widening<Format>();
    static_assert(kLinesBeforeWidening > 0, "int16 sums could overflow");
    for (size_t begin = 0; begin < num_lines; begin += kLinesBeforeWidening) {
      const size_t left = num_lines - begin;
      const size_t count = left < kLinesBeforeWidening ? left : kLinesBeforeWidening;
      for (size_t line = 0; line < count; ++line) prefetch_ahead(lines + line * kLineBytes);
      // Half a line at a time, so that the sums of all tokens fit the 16 registers.
      add_half_lines<Format, T, &Int::low>(lines, count, inputs, acc);
      add_half_lines<Format, T, &Int::high>(lines + kLineBytes / 2, count, inputs, acc);
      lines += count * kLineBytes;
      inputs += count * kPlaneInputs * Format::kPlanes * T;
    }
  }

  template <class Format, int T, __m256i IntLanes::*Half>
  static void add_half_lines(const uint8_t* lines, size_t count, const int8_t* inputs, Int (&acc)[T]) {
    __m256i sum[T];
    unroll<T>([&](auto t) { sum[t.value] = _mm256_setzero_si256(); });
    for (size_t line = 0; line < count; ++line) {
      __m256i planes[Format::kPlanes];
      unpack(Format(), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines + line * kLineBytes)), planes);
      unroll<Format::kPlanes>([&](auto plane) {
        unroll<T>([&](auto t) {
          const __m256i q = broadcast_four(inputs + kPlaneInputs * (plane.value * T + t.value));
          sum[t.value] = _mm256_add_epi16(sum[t.value], multiply(Format(), planes[plane.value], q));
        });
      });
      inputs += kPlaneInputs * Format::kPlanes * T;
    }
    const __m256i ones = _mm256_set1_epi16(1);
    unroll<T>([&](auto t) {
      acc[t.value].*Half = _mm256_add_epi32(acc[t.value].*Half, _mm256_madd_epi16(sum[t.value], ones));
    });
  }

  template <class Format>
  static __m256i multiply(Format, __m256i codes, __m256i q) {
    return _mm256_maddubs_epi16(codes, q);
  }
  /// The first operand is unsigned, so the sign of a code goes to its activation, which is never -128: activations are quantized
  /// to -127..127. So 2 * 128 * 127 is the most, and it fits int16, also for a code of -128 in a damaged file.
  static __m256i multiply(Int8, __m256i codes, __m256i q) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(q, codes));
  }
};

}  // namespace

extern const KernelTable avx2_kernels = LayerKernels<Avx2>::table();

}  // namespace mote
