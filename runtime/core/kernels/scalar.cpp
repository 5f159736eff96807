// The kernels in plain C++: for machines without a faster file, and what the others are compared with.
#include <cmath>
#include <cstring>

#include "kernels/layer_kernels.h"
#include "kernels/tables.h"

namespace mote {
namespace {

struct IntLanes;

struct FloatLanes {
  float lane[kLanes];

  template <class F>
  static FloatLanes each(F f) {
    FloatLanes out;
    for (size_t i = 0; i < kLanes; ++i) out.lane[i] = f(i);
    return out;
  }
  static FloatLanes all(float v) {
    return each([=](size_t) { return v; });
  }
  static FloatLanes load(const float* p) {
    FloatLanes out;
    std::memcpy(out.lane, p, sizeof(out.lane));
    return out;
  }
  static FloatLanes load_partial(const float* p, size_t n) {
    FloatLanes out = all(0.0f);
    std::memcpy(out.lane, p, n * sizeof(float));
    return out;
  }
  static FloatLanes load_bf16(const uint8_t* p) { return load_bf16(p, sizeof(uint16_t)); }
  static FloatLanes load_even_bf16(const uint8_t* line) { return load_bf16(line, 2 * sizeof(uint16_t)); }
  static FloatLanes load_odd_bf16(const uint8_t* line) { return load_bf16(line + sizeof(uint16_t), 2 * sizeof(uint16_t)); }
  static FloatLanes load_bf16(const uint8_t* p, size_t stride) {
    return each([=](size_t i) {
      uint16_t high_half;
      std::memcpy(&high_half, p + i * stride, sizeof(high_half));
      const uint32_t bits = static_cast<uint32_t>(high_half) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    });
  }
  void store(float* p) const { std::memcpy(p, lane, sizeof(lane)); }
  void store_partial(float* p, size_t n) const { std::memcpy(p, lane, n * sizeof(float)); }

  FloatLanes operator+(const FloatLanes& b) const {
    return each([&](size_t i) { return lane[i] + b.lane[i]; });
  }
  FloatLanes operator-(const FloatLanes& b) const {
    return each([&](size_t i) { return lane[i] - b.lane[i]; });
  }
  FloatLanes operator*(const FloatLanes& b) const {
    return each([&](size_t i) { return lane[i] * b.lane[i]; });
  }
  FloatLanes operator/(const FloatLanes& b) const {
    return each([&](size_t i) { return lane[i] / b.lane[i]; });
  }
  FloatLanes negated() const {
    return each([&](size_t i) { return -lane[i]; });
  }
  static FloatLanes greater_or_second(const FloatLanes& a, const FloatLanes& b) {
    return each([&](size_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FloatLanes less_or_second(const FloatLanes& a, const FloatLanes& b) {
    return each([&](size_t i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  FloatLanes round() const {
    return each([&](size_t i) { return ::rintf(lane[i]); });
  }
  FloatLanes canonical_nan() const {
    return each([&](size_t i) { return lane[i] == lane[i] ? lane[i] : __builtin_nanf(""); });
  }
  float fold_add() const {
    float sum[kLanes];
    std::memcpy(sum, lane, sizeof(sum));
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
    }
    return sum[0];
  }
  inline IntLanes magnitude_bits() const;
  inline IntLanes round_to_int() const;
};

struct IntLanes {
  int32_t lane[kLanes];

  template <class F>
  static IntLanes each(F f) {
    IntLanes out;
    for (size_t i = 0; i < kLanes; ++i) out.lane[i] = f(i);
    return out;
  }
  static IntLanes all(int32_t v) {
    return each([=](size_t) { return v; });
  }
  static IntLanes zero() { return all(0); }
  IntLanes operator+(const IntLanes& b) const {
    return each([&](size_t i) { return lane[i] + b.lane[i]; });
  }
  static IntLanes max(const IntLanes& a, const IntLanes& b) {
    return each([&](size_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  int32_t reduce_max() const {
    int32_t out = lane[0];
    for (size_t i = 1; i < kLanes; ++i) out = lane[i] > out ? lane[i] : out;
    return out;
  }
  int32_t reduce_add() const {
    int32_t out = 0;
    for (size_t i = 0; i < kLanes; ++i) out += lane[i];
    return out;
  }
  FloatLanes to_float() const {
    return FloatLanes::each([&](size_t i) { return static_cast<float>(lane[i]); });
  }
  FloatLanes power_of_two() const {
    constexpr int32_t kExponentBias = 127;
    constexpr int kMantissaBits = 23;
    const IntLanes bits = each([&](size_t i) { return (lane[i] + kExponentBias) * (1 << kMantissaBits); });
    FloatLanes out;
    std::memcpy(out.lane, bits.lane, sizeof(out.lane));
    return out;
  }
  void store_int8(int8_t* p) const {
    for (size_t i = 0; i < kLanes; ++i) {
      p[i] = static_cast<int8_t>(lane[i] < -128 ? -128 : lane[i] > 127 ? 127 : lane[i]);
    }
  }
};

IntLanes FloatLanes::magnitude_bits() const {
  constexpr int32_t kMagnitudeMask = 0x7fffffff;
  IntLanes bits;
  std::memcpy(bits.lane, lane, sizeof(lane));
  return IntLanes::each([&](size_t i) { return bits.lane[i] & kMagnitudeMask; });
}

IntLanes FloatLanes::round_to_int() const {
  return IntLanes::each([&](size_t i) { return static_cast<int32_t>(::rintf(lane[i])); });
}

int32_t code(TwoBit, uint8_t byte, int plane) { return (byte >> (2 * plane)) & 3; }

int32_t code(OneSixBit, uint8_t byte, int plane) {
  constexpr int32_t kPowersOfThree[] = {1, 3, 9, 27, 81};
  constexpr uint8_t kLargest = 242;
  return (byte > kLargest ? kLargest : byte) / kPowersOfThree[plane] % 3;
}

int32_t code(Int4, uint8_t byte, int plane) { return (byte >> (4 * plane)) & 15; }

int32_t code(Int8, uint8_t byte, int) { return static_cast<int8_t>(byte); }

struct Scalar {
  using Float = FloatLanes;
  using Int = IntLanes;
  static constexpr int kTileTokens = 1;  // compilers vectorize add_line only if a loop over tokens is not in the way
  static constexpr int kFloatTileTokens = 1;

  template <class Format>
  static constexpr int32_t code_offset() {
    return 0;
  }

  template <class Format, int T>
  static void dot(const uint8_t* lines, size_t num_lines, const int8_t* inputs, Int (&acc)[T]) {
    static_assert(T == kTileTokens, "one token at a time");
    for (size_t line = 0; line < num_lines; ++line) {
      add_line<Format>(lines + line * kLineBytes, inputs + line * Format::kPlanes * kPlaneInputs, &acc[0]);
    }
  }

  template <class Format>
  static void add_line(const uint8_t* line, const int8_t* q, Int* acc) {
    for (int plane = 0; plane < Format::kPlanes; ++plane) {
      for (size_t row = 0; row < kBlockRows; ++row) {
        int32_t sum = 0;
        for (size_t j = 0; j < kPlaneInputs; ++j) {
          sum += code(Format(), line[kPlaneInputs * row + j], plane) * q[kPlaneInputs * plane + j];
        }
        acc->lane[row] += sum;
      }
    }
  }
};

}  // namespace

extern const KernelTable scalar_kernels = LayerKernels<Scalar>::table();

}  // namespace mote
