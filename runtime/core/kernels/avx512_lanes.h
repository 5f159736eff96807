// AVX-512: a vector is one register. What avx512vnni.cpp and avx512vbmi.cpp have in common; all of it has internal linkage in
// each of them.
#pragma once

#include <immintrin.h>

#include "kernels/layer_kernels.h"

// Sanitizers do not see what inline assembly loads. gcc says it by a macro, older clangs by a feature.
#if defined(__has_feature)
#define MOTE_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOTE_SANITIZED 1
#else
#define MOTE_SANITIZED 0
#endif

namespace mote {
namespace {

struct IntLanes;

struct FloatLanes {
  __m512 v;

  static FloatLanes all(float value) { return {_mm512_set1_ps(value)}; }
  static FloatLanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FloatLanes load_partial(const float* p, size_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
  static FloatLanes load_bf16(const uint8_t* p) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
  static FloatLanes load_even_bf16(const uint8_t* line) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(line), 16))};
  }
  static FloatLanes load_odd_bf16(const uint8_t* line) {
    constexpr int32_t kHighHalf = static_cast<int32_t>(0xffff0000);
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(line), _mm512_set1_epi32(kHighHalf)))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_partial(float* p, size_t n) const { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
  static __mmask16 first_lanes(size_t n) { return static_cast<__mmask16>((1u << n) - 1); }

  FloatLanes operator+(FloatLanes b) const { return {_mm512_add_ps(v, b.v)}; }
  FloatLanes operator-(FloatLanes b) const { return {_mm512_sub_ps(v, b.v)}; }
  FloatLanes operator*(FloatLanes b) const { return {_mm512_mul_ps(v, b.v)}; }
  FloatLanes operator/(FloatLanes b) const { return {_mm512_div_ps(v, b.v)}; }
  FloatLanes negated() const {
    return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(v), _mm512_set1_epi32(INT32_MIN)))};
  }
  // maxps and minps return their second operand if one of the two is NaN.
  static FloatLanes greater_or_second(FloatLanes a, FloatLanes b) { return {_mm512_max_ps(a.v, b.v)}; }
  static FloatLanes less_or_second(FloatLanes a, FloatLanes b) { return {_mm512_min_ps(a.v, b.v)}; }
  FloatLanes round() const { return {_mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  FloatLanes canonical_nan() const {
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return {_mm512_mask_mov_ps(v, is_nan, _mm512_set1_ps(__builtin_nanf("")))};
  }
  float fold_add() const {
    const __m512d halves = _mm512_castps_pd(v);
    const __m256 low = _mm256_castpd_ps(_mm512_castpd512_pd256(halves));
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(halves, 1));
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  inline IntLanes magnitude_bits() const;
  inline IntLanes round_to_int() const;
};

struct IntLanes {
  __m512i v;

  static IntLanes all(int32_t value) { return {_mm512_set1_epi32(value)}; }
  static IntLanes zero() { return {_mm512_setzero_si512()}; }
  IntLanes operator+(IntLanes b) const { return {_mm512_add_epi32(v, b.v)}; }
  static IntLanes max(IntLanes a, IntLanes b) { return {_mm512_max_epi32(a.v, b.v)}; }
  int32_t reduce_max() const { return _mm512_reduce_max_epi32(v); }
  int32_t reduce_add() const { return _mm512_reduce_add_epi32(v); }
  FloatLanes to_float() const { return {_mm512_cvtepi32_ps(v)}; }
  FloatLanes power_of_two() const {
    constexpr int32_t kExponentBias = 127;
    constexpr int kMantissaBits = 23;
    const __m512i biased = _mm512_add_epi32(v, _mm512_set1_epi32(kExponentBias));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, kMantissaBits))};
  }
  void store_int8(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v)); }
};

IntLanes FloatLanes::magnitude_bits() const {
  return {_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(INT32_MAX))};
}

IntLanes FloatLanes::round_to_int() const {
  return {_mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

/// Integer dot products by vpdpbusd, which multiplies 16 rows by 4 inputs. `Unpack` turns a line into its planes.
template <class Unpack>
struct Avx512 {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 16;
  static constexpr int kFloatTileTokens = 12;

  /// vpdpbusd takes unsigned codes: signed ones are offset by flipping their top bit.
  template <class Format>
  static constexpr int32_t code_offset() {
    return Format::kFormat == WeightFormat::kInt8 ? 128 : 0;
  }

  /// sum + codes * the four inputs at q, which all rows share.
  static __m512i multiply_add(__m512i sum, __m512i codes, const int8_t* q) {
#if MOTE_SANITIZED
    int32_t bits;
    __builtin_memcpy(&bits, q, sizeof(bits));
    return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(bits));
#else
    // Not the intrinsic: gcc 12 copies every sum to another register and back around it, and loads the inputs in an instruction of
    // their own, which took half of the speed from formats with few planes.
    using FourInputs [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const FourInputs*>(q)));
    return sum;
#endif
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    // vpdpbusd takes 4 cycles and two start in each: it takes 8 chains of additions or more to keep it busy.
    constexpr int kChains = T >= 8 ? 1 : T >= 4 && Format::kPlanes > 2 ? 2 : Format::kPlanes;
    __m512i sum[T][kChains];
    unroll<T>([&](auto t) {
      sum[t.value][0] = acc[t.value].v;
      unroll<kChains - 1>([&](auto c) { sum[t.value][c.value + 1] = _mm512_setzero_si512(); });
    });
    for (size_t line = 0; line < num_lines; ++line) {
      prefetch_ahead(lines + line * kLineBytes);
      __m512i planes[Format::kPlanes];
      Unpack::unpack(Format(), _mm512_loadu_si512(lines + line * kLineBytes), planes);
      unroll<Format::kPlanes>([&](auto plane) {
        unroll<T>([&](auto t) {
          __m512i& chain = sum[t.value][plane.value % kChains];
          chain = multiply_add(chain, planes[plane.value], inputs + kPlaneInputs * (plane.value * T + t.value));
        });
      });
      inputs += kPlaneInputs * Format::kPlanes * T;
    }
    unroll<T>([&](auto t) {
      acc[t.value].v = sum[t.value][0];
      unroll<kChains - 1>([&](auto c) { acc[t.value].v = _mm512_add_epi32(acc[t.value].v, sum[t.value][c.value + 1]); });
    });
  }
};

/// The planes of all formats but 1.6bit.
struct UnpackBits {
  static void unpack(TwoBit, __m512i codes, __m512i (&planes)[4]) {
    const __m512i mask = _mm512_set1_epi8(3);
    planes[0] = _mm512_and_si512(codes, mask);
    planes[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 2), mask);
    planes[2] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    planes[3] = _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask);
  }
  static void unpack(Int4, __m512i codes, __m512i (&planes)[2]) {
    const __m512i mask = _mm512_set1_epi8(15);
    planes[0] = _mm512_and_si512(codes, mask);
    planes[1] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
  }
  static void unpack(Int8, __m512i codes, __m512i (&planes)[1]) {
    planes[0] = _mm512_xor_si512(codes, _mm512_set1_epi8(INT8_MIN));
  }
};

/// v or v - power or v - 2 * power, whichever is in [0, power), for v below 3 * power: differences below 0 wrap to the top.
inline __m512i remainder(__m512i v, int power) {
  const __m512i p = _mm512_set1_epi8(static_cast<char>(power));
  const __m512i once = _mm512_min_epu8(v, _mm512_sub_epi8(v, p));
  return _mm512_min_epu8(once, _mm512_sub_epi8(once, p));
}

}  // namespace
}  // namespace mote
