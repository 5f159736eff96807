// The kernels of docs/operator.md, written once over a vector of 16 lanes. Each ISA file includes this, gives its own
// `Isa` from an anonymous namespace, and so gets its own instantiations with internal linkage: the linker can never
// exchange the code of one ISA for that of another. For the same reason nothing with external linkage may live here, and
// nothing of the standard library is called.
//
// `Isa` has:
//   Float, Int          16 lanes of float32 and int32 with the operations used below
//   kTileTokens         see FormatKernels::tile_tokens, for integer formats; kFloatTileTokens for bf16
//   code_offset<Format>()   what the codes of a line exceed Format's by when this ISA multiplies them: 128 where a signed
//                       code must become an unsigned one, else 0
//   dot<Format, T>(lines, num_lines, inputs, acc)   acc[t] += sum code * q of a block of rows, for T tokens, whose four inputs of
//                       plane p of line l are at inputs + 4 * ((l * kPlanes + p) * T + t). It reads one stream of lines from
//                       beginning to end: two streams in turn were half as fast from DRAM
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/formats.h"
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
static_assert(kLanes == kBlockRows, "a vector is a block of rows");

namespace {

/// Asks for the line that will be needed in about a microsecond, which is what DRAM takes; hardware prefetchers stop at
/// each page of 4 KB. An address beyond the tensor is harmless, since a prefetch does not fault.
template <size_t kBytes = 8192>
inline void prefetch_ahead(const uint8_t* line) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(line) + kBytes));
}

/// The same for scales, of which a line lasts for two groups.
constexpr size_t kScalesAhead = 512;

/// A constant of the type system, so that a lambda can take it as an argument and use its value in array indices.
template <int N>
struct Constant {
  static constexpr int value = N;
};

/// f(Constant<0>()), ..., f(Constant<N - 1>()), unrolled by the front end: with constant indices from the start, compilers keep
/// arrays of sums in registers, which a loop that they unroll themselves does not always achieve.
template <int N, class F>
[[gnu::always_inline]] inline void unroll(F f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(Constant<N - 1>());
  }
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

  static QuantizedRow quantize_row(const float* v, size_t n, size_t group_size, int8_t* q, int32_t* group_sums) {
    constexpr int32_t kInfinityBits = 0x7f800000;
    constexpr float kLeastMagnitude = 1e-5f;
    constexpr float kLargestCode = 127.0f;

    // As integers, magnitudes sort like floats, and infinity and NaN are above all of them.
    Int largest = Int::zero();
    for (size_t k = 0; k < n; k += kLanes) {
      largest = Int::max(largest, load_up_to_16(v + k, n - k).magnitude_bits());
    }
    const int32_t bits = largest.reduce_max();
    const bool finite = bits < kInfinityBits;
    float a;
    __builtin_memcpy(&a, &bits, sizeof(a));
    const float m = a > kLeastMagnitude ? a : kLeastMagnitude;
    const Float s = Float::all(kLargestCode / m);

    size_t k = 0;
    int32_t row_sum = 0;
    const size_t group = group_sums != nullptr ? group_size : n;
    for (size_t begin = 0; begin < n && finite; begin += group) {
      const size_t end = n - begin < group ? n : begin + group;
      Int sum = Int::zero();
      for (k = begin; k < end; k += kLanes) {
        // |v * s| <= 127 * (1 + 2^-23), so rounding already lands in [-127, 127] and store_int8 saturates nothing.
        const Int code = (load_up_to_16(v + k, n - k) * s).round_to_int();
        code.store_int8(q + k);
        sum = sum + code;
      }
      const int32_t group_sum = sum.reduce_add();
      row_sum += group_sum;
      if (group_sums != nullptr) group_sums[begin / group] = group_sum;
    }
    for (; k < code_row_size(n); k += kLanes) Int::zero().store_int8(q + k);
    if (finite) return {m / kLargestCode, row_sum, true};
    for (size_t begin = 0; begin < n && group_sums != nullptr; begin += group) group_sums[begin / group] = 0;
    return {__builtin_nanf(""), 0, false};
  }

  static void interleave(const void* const* rows, size_t count, size_t num_words, size_t padded_words, void* out) {
    constexpr size_t kWord = 4;
    auto* to = static_cast<char*>(out);
    if (count == 1) {
      __builtin_memcpy(to, rows[0], num_words * kWord);
    } else {
      // Some words of all rows, then the next: what is written stays in the first cache until it is whole.
      constexpr size_t kWordsAtOnce = 64;
      for (size_t begin = 0; begin < num_words; begin += kWordsAtOnce) {
        const size_t end = num_words - begin < kWordsAtOnce ? num_words : begin + kWordsAtOnce;
        for (size_t t = 0; t < count; ++t) {
          const auto* row = static_cast<const char*>(rows[t]);
          for (size_t w = begin; w < end; ++w) __builtin_memcpy(to + kWord * (w * count + t), row + kWord * w, kWord);
        }
      }
    }
    __builtin_memset(to + kWord * num_words * count, 0, kWord * (padded_words - num_words) * count);
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

  /// The value of one matrix of an integer format for T tokens, steps 5 and 6.
  template <class Format, int T>
  [[gnu::noinline]] static void linear(const BlockShape& shape, const Block& block, const TokenTile& tile,
                                       Float (&out)[T]) {
    const auto* inputs = static_cast<const int8_t*>(tile.inputs);
    // What the codes exceed the weights by comes off in advance, by the sum of the inputs.
    constexpr int32_t kOffset = Format::kZero + Isa::template code_offset<Format>();
    Int acc[T];
    if constexpr (!Format::kGroups) {
      for (int t = 0; t < T; ++t) acc[t] = Int::all(-kOffset * tile.sum[t]);
      Isa::template dot<Format, T>(block.lines, shape.num_lines, inputs, acc);
      for (int t = 0; t < T; ++t) out[t] = acc[t].to_float() * Float::all(tile.d[t] * block.scale);
    } else {
      const auto* scales = static_cast<const uint8_t*>(block.group_scales);
      const bool one_group = shape.lines_per_group >= shape.num_lines;
      const int32_t* sums = one_group ? tile.sum : tile.group_sums;
      for (int t = 0; t < T; ++t) out[t] = Float::all(0.0f);
      for (size_t line = 0; line < shape.num_lines; line += shape.lines_per_group) {
        const size_t left = shape.num_lines - line;
        for (int t = 0; t < T; ++t) acc[t] = Int::all(-kOffset * sums[t]);
        Isa::template dot<Format, T>(block.lines + line * kLineBytes,
                                     left < shape.lines_per_group ? left : shape.lines_per_group,
                                     inputs + line * (Format::kPlanes * kPlaneInputs * T), acc);
        prefetch_ahead<kScalesAhead>(scales);
        const Float scale = Float::load_bf16(scales);
        for (int t = 0; t < T; ++t) out[t] = out[t] + acc[t].to_float() * scale;
        scales += kLanes * sizeof(uint16_t);
        sums += T;
      }
      for (int t = 0; t < T; ++t) out[t] = out[t] * Float::all(tile.d[t]);
    }
  }

  /// The same for bf16: two sums for each token, over even and over odd inputs. A line has 16 rows by two inputs.
  template <int T>
  [[gnu::noinline]] static void linear_bf16(const BlockShape& shape, const Block& block, const TokenTile& tile,
                                            Float (&out)[T]) {
    const auto* inputs = static_cast<const float*>(tile.inputs);
    Float even[T], odd[T];
    unroll<T>([&](auto t) { even[t.value] = odd[t.value] = Float::all(0.0f); });
    for (size_t line = 0; line < shape.num_lines; ++line, inputs += 2 * T) {
      const uint8_t* weights = block.lines + line * kLineBytes;
      prefetch_ahead(weights);
      const Float even_weight = Float::load_even_bf16(weights);
      const Float odd_weight = Float::load_odd_bf16(weights);
      unroll<T>([&](auto t) {
        even[t.value] = even[t.value] + even_weight * Float::all(inputs[t.value]);
        odd[t.value] = odd[t.value] + odd_weight * Float::all(inputs[T + t.value]);
      });
    }
    unroll<T>([&](auto t) { out[t.value] = even[t.value] + odd[t.value]; });
  }

  /// One matrix of any format.
  struct Bf16 {
    static constexpr WeightFormat kFormat = WeightFormat::kBf16;
    static constexpr int kMaxTile = Isa::kFloatTileTokens;
    template <int T>
    static void values(const BlockShape& shape, const Block& block, const TokenTile& tile, Float (&out)[T]) {
      linear_bf16<T>(shape, block, tile, out);
    }
  };
  template <class Format>
  struct Integer {
    static constexpr WeightFormat kFormat = Format::kFormat;
    static constexpr int kMaxTile = Isa::kTileTokens;
    template <int T>
    static void values(const BlockShape& shape, const Block& block, const TokenTile& tile, Float (&out)[T]) {
      linear<Format, T>(shape, block, tile, out);
    }
  };

  /// Picks the instantiation for tile.count, which is 1 to T.
  template <class Matrix, int T = Matrix::kMaxTile>
  static void gate_up_block(const BlockShape& shape, const Block& gate, const Block& up, const TokenTile& tile, float* h,
                            size_t h_stride) {
    if constexpr (T > 1) {
      if (tile.count < T) return gate_up_block<Matrix, T - 1>(shape, gate, up, tile, h, h_stride);
    }
    Float gate_value[T], up_value[T];
    Matrix::template values<T>(shape, gate, tile, gate_value);
    Matrix::template values<T>(shape, up, tile, up_value);
    for (int t = 0; t < T; ++t) (silu(gate_value[t]) * up_value[t]).store(h + t * h_stride);
  }

  template <class Matrix, int T = Matrix::kMaxTile>
  static void linear_block(const BlockShape& shape, const Block& block, const TokenTile& tile, float* results) {
    if constexpr (T > 1) {
      if (tile.count < T) return linear_block<Matrix, T - 1>(shape, block, tile, results);
    }
    Float value[T];
    Matrix::template values<T>(shape, block, tile, value);
    for (int t = 0; t < T; ++t) value[t].store(results + kLanes * t);
  }

  static void combine(const float* results, const uint32_t* slots, const float* gates, size_t top_k, const float* shared,
                      float* y, size_t n) {
    Float sum = Float::all(gates[0]) * Float::load(results + kLanes * slots[0]);
    for (size_t rank = 1; rank < top_k; ++rank) {
      sum = sum + Float::all(gates[rank]) * Float::load(results + kLanes * slots[rank]);
    }
    if (shared != nullptr) sum = Float::load(shared) + sum;
    sum = sum.canonical_nan();
    if (n >= kLanes) {
      sum.store(y);
    } else {
      sum.store_partial(y, n);
    }
  }

  /// The kernels of a format, whose place in the table is its number.
  template <size_t kPlace, class Matrix>
  static constexpr FormatKernels format_kernels() {
    static_assert(Matrix::kFormat == static_cast<WeightFormat>(kPlace), "a format in another's place");
    static_assert(Matrix::kMaxTile <= static_cast<int>(kMaxTileTokens), "a TokenTile is too small for this ISA");
    return {Matrix::kMaxTile, &gate_up_block<Matrix>, &linear_block<Matrix>};
  }

  static constexpr KernelTable table() {
    return {&quantize_row,
            &interleave,
            &route,
            &combine,
            {format_kernels<0, Integer<TwoBit>>(), format_kernels<1, Integer<OneSixBit>>(), format_kernels<2, Integer<Int4>>(),
             format_kernels<3, Integer<Int8>>(), format_kernels<4, Bf16>()}};
  }
};

}  // namespace mote
