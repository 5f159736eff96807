// AVX2: a vector is two registers of 8 lanes. What avx2.cpp and avxvnni.cpp have in common; all of it has internal linkage in
// each of them.
#pragma once

#include <immintrin.h>

#include "kernels/layer_kernels.h"

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
  static FloatLanes load_bf16(const uint8_t* p) {
    const auto* halves = reinterpret_cast<const __m128i*>(p);
    return {widen_bf16(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves))),
            widen_bf16(_mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1)))};
  }
  static FloatLanes load_even_bf16(const uint8_t* line) {
    const auto* halves = reinterpret_cast<const __m256i*>(line);
    return {widen_bf16(_mm256_loadu_si256(halves)), widen_bf16(_mm256_loadu_si256(halves + 1))};
  }
  static FloatLanes load_odd_bf16(const uint8_t* line) {
    const __m256i high_half = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000));
    const auto* halves = reinterpret_cast<const __m256i*>(line);
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(halves), high_half)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(halves + 1), high_half))};
  }
  static __m256 widen_bf16(__m256i low_halves) { return _mm256_castsi256_ps(_mm256_slli_epi32(low_halves, 16)); }
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

inline __m256i broadcast_four(const int8_t* q) {
  int32_t bits;
  __builtin_memcpy(&bits, q, sizeof(bits));
  return _mm256_set1_epi32(bits);
}

/// v or v - power or v - 2 * power, whichever is in [0, power), for v below 3 * power: differences below 0 wrap to the top.
inline __m256i remainder(__m256i v, int power) {
  const __m256i p = _mm256_set1_epi8(static_cast<char>(power));
  const __m256i once = _mm256_min_epu8(v, _mm256_sub_epi8(v, p));
  return _mm256_min_epu8(once, _mm256_sub_epi8(once, p));
}

/// The planes of half a line, 8 rows by 4 inputs each.
inline void unpack(TwoBit, __m256i codes, __m256i (&planes)[4]) {
  const __m256i mask = _mm256_set1_epi8(3);
  planes[0] = _mm256_and_si256(codes, mask);
  planes[1] = _mm256_and_si256(_mm256_srli_epi16(codes, 2), mask);
  planes[2] = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
  planes[3] = _mm256_and_si256(_mm256_srli_epi16(codes, 6), mask);
}

template <class... Bytes>
inline __m256i table_of_16(Bytes... bytes) {
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(static_cast<char>(bytes)...));
}

inline void unpack(OneSixBit, __m256i codes, __m256i (&planes)[5]) {
  // 81 * c has c in its lowest two bits. 27 * c, 9 * c, and what is left, 3 * c1 + c0, differ in the nibble that vpshufb takes.
  const __m256i from_27 = table_of_16(0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0);
  const __m256i from_9 = table_of_16(0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0);
  const __m256i high_of_9 = table_of_16(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0);
  const __m256i low_of_9 = table_of_16(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0);
  const __m256i v = _mm256_min_epu8(codes, _mm256_set1_epi8(static_cast<char>(242)));
  const __m256i below_81 = remainder(v, 81);
  const __m256i below_27 = remainder(below_81, 27);
  const __m256i below_9 = remainder(below_27, 9);
  planes[4] = _mm256_and_si256(_mm256_sub_epi8(v, below_81), _mm256_set1_epi8(3));
  planes[3] = _mm256_shuffle_epi8(from_27, _mm256_sub_epi8(below_81, below_27));
  planes[2] = _mm256_shuffle_epi8(from_9, _mm256_sub_epi8(below_27, below_9));
  planes[1] = _mm256_shuffle_epi8(high_of_9, below_9);
  planes[0] = _mm256_shuffle_epi8(low_of_9, below_9);
}

inline void unpack(Int4, __m256i codes, __m256i (&planes)[2]) {
  const __m256i mask = _mm256_set1_epi8(15);
  planes[0] = _mm256_and_si256(codes, mask);
  planes[1] = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
}

inline void unpack(Int8, __m256i codes, __m256i (&planes)[1]) { planes[0] = codes; }

}  // namespace
}  // namespace mote
