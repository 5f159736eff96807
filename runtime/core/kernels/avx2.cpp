// AVX2: a vector is two registers of 8 lanes, and integer products go through vpmaddubsw and vpmaddwd.
#include <immintrin.h>

#include "kernels/layer_kernels.h"
#include "kernels/tables.h"

namespace mote {
namespace {

constexpr size_t kHalf = kLanes / 2;

struct IntLanes;

struct FloatLanes {
  __m256 low, high;

  static FloatLanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static FloatLanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + kHalf)}; }
  static FloatLanes load_partial(const float* p, size_t n) {
    return {_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + kHalf, lanes_below(n, kHalf))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, low);
    _mm256_storeu_ps(p + kHalf, high);
  }
  void store_partial(float* p, size_t n) const {
    _mm256_maskstore_ps(p, lanes_below(n, 0), low);
    _mm256_maskstore_ps(p + kHalf, lanes_below(n, kHalf), high);
  }
  /// All bits of lane i where first + i < n.
  static __m256i lanes_below(size_t n, size_t first) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n) - static_cast<int>(first)), index);
  }

  FloatLanes operator+(FloatLanes b) const { return {_mm256_add_ps(low, b.low), _mm256_add_ps(high, b.high)}; }
  FloatLanes operator-(FloatLanes b) const { return {_mm256_sub_ps(low, b.low), _mm256_sub_ps(high, b.high)}; }
  FloatLanes operator*(FloatLanes b) const { return {_mm256_mul_ps(low, b.low), _mm256_mul_ps(high, b.high)}; }
  FloatLanes operator/(FloatLanes b) const { return {_mm256_div_ps(low, b.low), _mm256_div_ps(high, b.high)}; }
  FloatLanes negated() const {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(low, sign), _mm256_xor_ps(high, sign)};
  }
  // maxps and minps return their second operand if one of the two is NaN.
  static FloatLanes greater_or_second(FloatLanes a, FloatLanes b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static FloatLanes less_or_second(FloatLanes a, FloatLanes b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  FloatLanes round() const {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(low, kNearest), _mm256_round_ps(high, kNearest)};
  }
  FloatLanes canonical_nan() const {
    const __m256 nan = _mm256_set1_ps(__builtin_nanf(""));
    return {_mm256_blendv_ps(low, nan, _mm256_cmp_ps(low, low, _CMP_UNORD_Q)),
            _mm256_blendv_ps(high, nan, _mm256_cmp_ps(high, high, _CMP_UNORD_Q))};
  }
  float fold_add() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  inline IntLanes magnitude_bits() const;
  inline IntLanes round_to_int() const;
};

struct IntLanes {
  __m256i low, high;

  static IntLanes all(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static IntLanes zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  IntLanes operator+(IntLanes b) const { return {_mm256_add_epi32(low, b.low), _mm256_add_epi32(high, b.high)}; }
  IntLanes operator-(IntLanes b) const { return {_mm256_sub_epi32(low, b.low), _mm256_sub_epi32(high, b.high)}; }
  static IntLanes max(IntLanes a, IntLanes b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  int32_t reduce_max() const {
    const __m256i eight = _mm256_max_epi32(low, high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  int32_t reduce_add() const {
    const __m256i eight = _mm256_add_epi32(low, high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
  }
  FloatLanes to_float() const { return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}; }
  FloatLanes power_of_two() const { return {power_of_two(low), power_of_two(high)}; }
  static __m256 power_of_two(__m256i exponent) {
    constexpr int32_t kExponentBias = 127;
    constexpr int kMantissaBits = 23;
    const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(kExponentBias));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, kMantissaBits));
  }
  void store_int8(int8_t* p) const {
    const __m128i first = _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m128i second = _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(first, second));
  }
};

IntLanes FloatLanes::magnitude_bits() const {
  const __m256i mask = _mm256_set1_epi32(INT32_MAX);
  return {_mm256_and_si256(_mm256_castps_si256(low), mask), _mm256_and_si256(_mm256_castps_si256(high), mask)};
}

IntLanes FloatLanes::round_to_int() const {
  const FloatLanes rounded = round();
  return {_mm256_cvttps_epi32(rounded.low), _mm256_cvttps_epi32(rounded.high)};
}

struct Avx2 {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 8;
  static constexpr int kPlanes = 4;

  // vpmaddubsw adds two products of a code (0..3) and an activation (-128..127), at most 2 * 3 * 128 = 768 in magnitude,
  // so it does not saturate. Each int16 lane takes one such sum for each plane of each line before it is widened:
  // 10 lines * 4 planes * 768 = 30720 <= 32767.
  static constexpr size_t kLinesBeforeWidening = 10;
  static_assert(kLinesBeforeWidening * kPlanes * (2 * 3 * 128) <= INT16_MAX, "int16 sums could overflow");

  template <int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* const* q, Int (&acc)[T]) {
    for (int t = 0; t < T; ++t) acc[t] = Int::zero();
    for (size_t begin = 0; begin < num_lines; begin += kLinesBeforeWidening) {
      const size_t left = num_lines - begin;
      const size_t end = begin + (left < kLinesBeforeWidening ? left : kLinesBeforeWidening);
      for (size_t line = begin; line < end; ++line) prefetch_ahead(lines + line * kLineBytes);
      // Half a line at a time, so that the sums of all tokens fit the 16 registers.
      add_half_lines<T, &Int::low>(lines, begin, end, q, acc);
      add_half_lines<T, &Int::high>(lines + kLineBytes / 2, begin, end, q, acc);
    }
  }

  template <int T, __m256i IntLanes::*Half>
  static void add_half_lines(const uint8_t* lines, size_t begin, size_t end, const int8_t* const* q, Int (&acc)[T]) {
    const __m256i code_mask = _mm256_set1_epi8(3);
    __m256i sum[T];
    for (int t = 0; t < T; ++t) sum[t] = _mm256_setzero_si256();
    for (size_t line = begin; line < end; ++line) {
      __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines + line * kLineBytes));
#pragma GCC unroll 4
      for (int plane = 0; plane < kPlanes; ++plane) {
        const __m256i unpacked = _mm256_and_si256(codes, code_mask);
        codes = _mm256_srli_epi16(codes, 2);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256i inputs = broadcast_four(q[t] + line * kLineInputs + plane * 4);
          sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(unpacked, inputs));
        }
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < T; ++t) {
      acc[t].*Half = _mm256_add_epi32(acc[t].*Half, _mm256_madd_epi16(sum[t], ones));
    }
  }

  static __m256i broadcast_four(const int8_t* q) {
    int32_t bits;
    __builtin_memcpy(&bits, q, sizeof(bits));
    return _mm256_set1_epi32(bits);
  }
};

}  // namespace

extern const KernelTable avx2_kernels = LayerKernels<Avx2>::table();

}  // namespace mote
