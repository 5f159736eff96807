// The kernels of docs/operator.md, written once over a vector of 16 lanes. Each ISA file includes this, gives its own
// `Isa` from an anonymous namespace, and so gets its own instantiations with internal linkage: the linker can never
// exchange the code of one ISA for that of another. For the same reason nothing with external linkage may live here, and
// nothing of the standard library is called.
//
// `Isa` has:
//   Float, Int     16 lanes of float32 and int32 with the operations used below
//   kTileTokens    see KernelTable::tile_tokens
//   dot<T>(lines, num_lines, q, acc)   sum (t + 1) * q of a block of rows for T tokens. It reads one stream of lines from
//                  beginning to end: two streams in turn were half as fast from DRAM
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "layout.h"

#ifdef __FAST_MATH__
#error "mote's results are defined to the last bit: compile without -ffast-math"
#endif
// 16 concerns types narrower than float.
#if !defined(__FLT_EVAL_METHOD__) || (__FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16)
#error "mote's results are defined to the last bit: compile for float arithmetic without excess precision (not x87)"
#endif

namespace mote {

inline constexpr size_t kLanes = 16;
static_assert(kLanes == kBlockRows && kLanes == kLineInputs, "a vector is a block of rows");

namespace {

/// Asks for the line that will be needed in about a microsecond, which is what DRAM takes; hardware prefetchers stop at
/// each page of 4 KB. An address beyond the tensor is harmless, since a prefetch does not fault.
inline void prefetch_ahead(const uint8_t* line) {
  constexpr size_t kPrefetchBytes = 8192;
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(line) + kPrefetchBytes));
}

}  // namespace

template <class Isa>
struct LayerKernels {
  using Float = typename Isa::Float;
  using Int = typename Isa::Int;

  /// Lanes beyond n are 0.
  static Float load_up_to_16(const float* v, size_t n) {
    return n >= kLanes ? Float::load(v) : Float::load_partial(v, n);
  }

  static QuantizedRow quantize_row(const float* v, size_t n, int8_t* q) {
    constexpr int32_t kInfinityBits = 0x7f800000;
    constexpr float kLeastMagnitude = 1e-5f;
    constexpr float kLargestCode = 127.0f;

    // As integers, magnitudes sort like floats, and infinity and NaN are above all of them.
    Int largest = Int::zero();
    for (size_t k = 0; k < n; k += kLanes) {
      largest = Int::max(largest, load_up_to_16(v + k, n - k).magnitude_bits());
    }
    const int32_t bits = largest.reduce_max();
    if (bits >= kInfinityBits) {
      for (size_t k = 0; k < n; k += kLanes) Int::zero().store_int8(q + k);
      return {__builtin_nanf(""), 0, false};
    }

    float a;
    __builtin_memcpy(&a, &bits, sizeof(a));
    const float m = a > kLeastMagnitude ? a : kLeastMagnitude;
    const Float s = Float::all(kLargestCode / m);
    Int sum = Int::zero();
    for (size_t k = 0; k < n; k += kLanes) {
      // |v * s| <= 127 * (1 + 2^-23), so rounding already lands in [-127, 127] and store_int8 saturates nothing.
      const Int code = (load_up_to_16(v + k, n - k) * s).round_to_int();
      code.store_int8(q + k);
      sum = sum + code;
    }
    return {m / kLargestCode, sum.reduce_add(), true};
  }

  /// exp as defined in docs/operator.md: Cephes' expf without fused operations.
  static Float exponential(Float v) {
    v = Float::greater_or_second(v, Float::all(-87.0f));
    v = Float::less_or_second(v, Float::all(88.0f));
    const Float n = (v * Float::all(1.44269504f)).round();
    Float r = v - n * Float::all(0.693359375f);
    r = r - n * Float::all(-2.12194440e-4f);
    const Float z = r * r;
    Float p = Float::all(1.9875691500e-4f);
    p = p * r + Float::all(1.3981999507e-3f);
    p = p * r + Float::all(8.3334519073e-3f);
    p = p * r + Float::all(4.1665795894e-2f);
    p = p * r + Float::all(1.6666665459e-1f);
    p = p * r + Float::all(5.0000001201e-1f);
    p = p * z;
    p = p + r;
    p = p + Float::all(1.0f);
    return p * n.round_to_int().power_of_two();
  }

  static Float silu(Float v) { return v / (Float::all(1.0f) + exponential(v.negated())); }

  /// Dot products of x with N consecutive rows of the router; several at once, because each is one chain of additions.
  template <int N>
  static void router_logits(const float* x, const float* router, size_t hidden_size, float* logits) {
    Float acc[N];
    for (int i = 0; i < N; ++i) acc[i] = Float::all(0.0f);
    for (size_t k = 0; k < hidden_size; k += kLanes) {
      const Float value = load_up_to_16(x + k, hidden_size - k);
      for (int i = 0; i < N; ++i) {
        acc[i] = acc[i] + value * load_up_to_16(router + i * hidden_size + k, hidden_size - k);
      }
    }
    for (int i = 0; i < N; ++i) logits[i] = acc[i].fold_add();
  }

  static bool route(const float* x, const float* router, size_t num_experts, size_t hidden_size, float* logits,
                    float* probabilities) {
    constexpr size_t kExpertsAtOnce = 4;
    size_t i = 0;
    for (; i + kExpertsAtOnce <= num_experts; i += kExpertsAtOnce) {
      router_logits<kExpertsAtOnce>(x, router + i * hidden_size, hidden_size, logits + i);
    }
    for (; i < num_experts; ++i) router_logits<1>(x, router + i * hidden_size, hidden_size, logits + i);

    float largest = logits[0];
    for (i = 0; i < num_experts; ++i) {
      if (!__builtin_isfinite(logits[i])) return false;
      if (logits[i] > largest) largest = logits[i];
    }
    for (i = 0; i < num_experts; i += kLanes) {
      const Float shifted = load_up_to_16(logits + i, num_experts - i) - Float::all(largest);
      exponential(shifted).store(probabilities + i);
    }
    float sum = 0.0f;
    for (i = 0; i < num_experts; ++i) sum = sum + probabilities[i];
    for (i = 0; i < num_experts; ++i) probabilities[i] = probabilities[i] / sum;
    return true;
  }

  /// float(sum t * q) * (d * scale) from sum (t + 1) * q.
  static Float dequantize(Int acc, const TokenTile& tile, size_t token, float scale) {
    return (acc - Int::all(tile.sum[token])).to_float() * Float::all(tile.d[token] * scale);
  }

  template <int T>
  static void gate_up_tile(const uint8_t* lines, size_t num_lines, const TokenTile& tile, const float* gate_up_scale,
                           float* h, size_t h_stride) {
    Int gate_acc[T], up_acc[T];
    Isa::template dot<T>(lines, num_lines, tile.q, gate_acc);
    Isa::template dot<T>(lines + num_lines * kLineBytes, num_lines, tile.q, up_acc);
    for (int t = 0; t < T; ++t) {
      const Float gate = dequantize(gate_acc[t], tile, t, gate_up_scale[0]);
      const Float up = dequantize(up_acc[t], tile, t, gate_up_scale[1]);
      (silu(gate) * up).store(h + t * h_stride);
    }
  }

  template <int T>
  static void down_tile(const uint8_t* lines, size_t num_lines, const TokenTile& tile, float down_scale,
                        float* results) {
    Int acc[T];
    Isa::template dot<T>(lines, num_lines, tile.q, acc);
    for (int t = 0; t < T; ++t) dequantize(acc[t], tile, t, down_scale).store(results + kLanes * t);
  }

  /// Picks the instantiation for tile.count, which is 1 to T.
  template <int T = Isa::kTileTokens>
  static void gate_up_block(const uint8_t* lines, size_t num_lines, const TokenTile& tile, const float* gate_up_scale,
                            float* h, size_t h_stride) {
    if constexpr (T > 1) {
      if (tile.count < T) return gate_up_block<T - 1>(lines, num_lines, tile, gate_up_scale, h, h_stride);
    }
    gate_up_tile<T>(lines, num_lines, tile, gate_up_scale, h, h_stride);
  }

  template <int T = Isa::kTileTokens>
  static void down_block(const uint8_t* lines, size_t num_lines, const TokenTile& tile, float down_scale,
                         float* results) {
    if constexpr (T > 1) {
      if (tile.count < T) return down_block<T - 1>(lines, num_lines, tile, down_scale, results);
    }
    down_tile<T>(lines, num_lines, tile, down_scale, results);
  }

  static void combine(const float* results, const uint32_t* slots, const float* gates, size_t top_k, float* y,
                      size_t n) {
    Float sum = Float::all(gates[0]) * Float::load(results + kLanes * slots[0]);
    for (size_t rank = 1; rank < top_k; ++rank) {
      sum = sum + Float::all(gates[rank]) * Float::load(results + kLanes * slots[rank]);
    }
    sum = sum.canonical_nan();
    if (n >= kLanes) {
      sum.store(y);
    } else {
      sum.store_partial(y, n);
    }
  }

  static constexpr KernelTable table() {
    static_assert(Isa::kTileTokens <= kMaxTileTokens, "a TokenTile is too small for this ISA");
    return {Isa::kTileTokens, &quantize_row, &route, &gate_up_block<>, &down_block<>, &combine};
  }
};

}  // namespace mote
