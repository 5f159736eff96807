// The vector of 16 lanes on 64-bit ARM: four registers of four. For the ISA files of ARM, each of which gets its own
// copy in an anonymous namespace, since each is compiled with other flags.
#pragma once

#include <arm_neon.h>

#include "kernels/layer_kernels.h"

namespace mote {
namespace {

constexpr size_t kRegisterLanes = 4;
constexpr int kRegisters = kLanes / kRegisterLanes;

struct IntLanes;

struct FloatLanes {
  float32x4_t v[kRegisters];

  /// f(0), f(1), ... are the registers. Spelled out, since compilers keep in memory what loops write to an array.
  template <class F>
  static FloatLanes each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static FloatLanes all(float value) {
    return each([=](int) { return vdupq_n_f32(value); });
  }
  static FloatLanes load(const float* p) {
    return each([=](int i) { return vld1q_f32(p + i * kRegisterLanes); });
  }
  static FloatLanes load_partial(const float* p, size_t n) {
    float padded[kLanes] = {};
    __builtin_memcpy(padded, p, n * sizeof(float));
    return load(padded);
  }
  static FloatLanes load_bf16(const uint8_t* p) {
    return each([=](int i) { return widen(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)))); });
  }
  static FloatLanes load_even_bf16(const uint8_t* line) {
    return each([=](int i) { return widen(load_words(line, i)); });
  }
  static FloatLanes load_odd_bf16(const uint8_t* line) {
    const uint32x4_t high_half = vdupq_n_u32(0xffff0000);
    return each([=](int i) { return vreinterpretq_f32_u32(vandq_u32(load_words(line, i), high_half)); });
  }
  /// The bfloat16 in the low half of each lane.
  static float32x4_t widen(uint32x4_t low_half) { return vreinterpretq_f32_u32(vshlq_n_u32(low_half, 16)); }
  /// By bytes, as a line may lie anywhere.
  static uint32x4_t load_words(const uint8_t* line, int i) { return vreinterpretq_u32_u8(vld1q_u8(line + 16 * i)); }
  void store(float* p) const {
    for (int i = 0; i < kRegisters; ++i) vst1q_f32(p + i * kRegisterLanes, v[i]);
  }
  void store_partial(float* p, size_t n) const {
    float values[kLanes];
    store(values);
    __builtin_memcpy(p, values, n * sizeof(float));
  }

  FloatLanes operator+(const FloatLanes& b) const {
    return each([&](int i) { return vaddq_f32(v[i], b.v[i]); });
  }
  FloatLanes operator-(const FloatLanes& b) const {
    return each([&](int i) { return vsubq_f32(v[i], b.v[i]); });
  }
  FloatLanes operator*(const FloatLanes& b) const {
    return each([&](int i) { return vmulq_f32(v[i], b.v[i]); });
  }
  FloatLanes operator/(const FloatLanes& b) const {
    return each([&](int i) { return vdivq_f32(v[i], b.v[i]); });
  }
  FloatLanes negated() const {
    return each([&](int i) { return vnegq_f32(v[i]); });
  }
  // Not fmax and fmin, which return a NaN where x86 returns the second operand.
  static FloatLanes greater_or_second(const FloatLanes& a, const FloatLanes& b) {
    return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  static FloatLanes less_or_second(const FloatLanes& a, const FloatLanes& b) {
    return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
  }
  FloatLanes round() const {
    return each([&](int i) { return vrndnq_f32(v[i]); });
  }
  FloatLanes canonical_nan() const {
    const float32x4_t nan = vdupq_n_f32(__builtin_nanf(""));
    return each([&](int i) { return vbslq_f32(vceqq_f32(v[i], v[i]), v[i], nan); });
  }
  float fold_add() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  inline IntLanes magnitude_bits() const;
  inline IntLanes round_to_int() const;
};

struct IntLanes {
  int32x4_t v[kRegisters];

  template <class F>
  static IntLanes each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static IntLanes all(int32_t value) {
    return each([=](int) { return vdupq_n_s32(value); });
  }
  static IntLanes zero() { return all(0); }
  IntLanes operator+(const IntLanes& b) const {
    return each([&](int i) { return vaddq_s32(v[i], b.v[i]); });
  }
  static IntLanes max(const IntLanes& a, const IntLanes& b) {
    return each([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
  }
  int32_t reduce_max() const { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(v[0], v[1]), vmaxq_s32(v[2], v[3]))); }
  int32_t reduce_add() const { return vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))); }
  FloatLanes to_float() const {
    return FloatLanes::each([&](int i) { return vcvtq_f32_s32(v[i]); });
  }
  FloatLanes power_of_two() const {
    constexpr int32_t kExponentBias = 127;
    constexpr int kMantissaBits = 23;
    const int32x4_t bias = vdupq_n_s32(kExponentBias);
    return FloatLanes::each([&](int i) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(v[i], bias), kMantissaBits));
    });
  }
  void store_int8(int8_t* p) const {
    const int16x8_t first = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
    const int16x8_t second = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(first), vqmovn_s16(second)));
  }
};

IntLanes FloatLanes::magnitude_bits() const {
  return IntLanes::each([&](int i) { return vreinterpretq_s32_f32(vabsq_f32(v[i])); });
}

IntLanes FloatLanes::round_to_int() const {
  return IntLanes::each([&](int i) { return vcvtnq_s32_f32(v[i]); });
}

}  // namespace
}  // namespace mote
