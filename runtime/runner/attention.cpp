// A tile is some rows of one key head: the heads of the query that share it, at consecutive positions. It goes through
// the keys in blocks, and through each block four rows at a time, so that a key or a value that was loaded serves four
// rows. Vectors run along the head, so keys are read as they lie, in a prompt as in a single step.
//
// A row's result is made of the same operations in the same order, whatever rows are beside it: blocks begin at
// position 0, and every sum over a head or a block has one order. So neither chunks nor threads change a bit of it.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mote::runner {
namespace {

constexpr size_t kKeysPerBlock = 64;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// All of it becomes one function for each instruction set, which holds sums in registers: loops over kRows and the like
// have to be unrolled for that. The undefined behaviour sanitizer's checks would keep a compiler busy for half a minute
// with it; the address sanitizer's are there.
#define MOTE_INLINE inline __attribute__((always_inline, no_sanitize("undefined")))
#if defined(__clang__)
#define MOTE_UNROLL _Pragma("unroll")
#else
#define MOTE_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define MOTE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MOTE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bits{__VA_ARGS__})
#endif

/// An instruction set: its vectors, how many of them hold sums at once (as many as have registers, and enough to wait
/// for their products), and the two steps of adding up lanes: pairs of lanes, and pairs of blocks of 4 lanes. A step
/// makes one vector of two.
struct Narrow {
  typedef float Vector __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
#if defined(__aarch64__)
  static constexpr size_t kSums = 16;
#else
  static constexpr size_t kSums = 8;
#endif
  static MOTE_INLINE void add_pairs(const Vector& a, const Vector& b, Vector* out) {
    *out = MOTE_SHUFFLE(a, b, 0, 2, 4, 6) + MOTE_SHUFFLE(a, b, 1, 3, 5, 7);
  }
  static MOTE_INLINE void add_blocks(const Vector&, const Vector&, Vector*) {}
};

#if defined(__x86_64__)
struct Avx2 {
  typedef float Vector __attribute__((vector_size(32)));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  static constexpr size_t kSums = 8;
  static MOTE_INLINE void add_pairs(const Vector& a, const Vector& b, Vector* out) {
    *out = MOTE_SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + MOTE_SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  }
  static MOTE_INLINE void add_blocks(const Vector& a, const Vector& b, Vector* out) {
    *out = MOTE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + MOTE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
};

struct Avx512 {
  typedef float Vector __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  static constexpr size_t kSums = 16;
  static MOTE_INLINE void add_pairs(const Vector& a, const Vector& b, Vector* out) {
    *out = MOTE_SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           MOTE_SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
  static MOTE_INLINE void add_blocks(const Vector& a, const Vector& b, Vector* out) {
    *out = MOTE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           MOTE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
};
#endif

template <class Isa>
constexpr size_t kLanes = sizeof(typename Isa::Vector) / sizeof(float);

template <class Isa>
MOTE_INLINE void load(const float* from, typename Isa::Vector* to) {
  std::memcpy(to, from, sizeof(*to));
}

template <class Isa>
MOTE_INLINE void store(const typename Isa::Vector& from, float* to) {
  std::memcpy(to, &from, sizeof(from));
}

/// x = exp(x) of x at most 0, to 2 units in the last place: 2^n times a polynomial of the rest. NaN gives NaN.
template <class Isa>
MOTE_INLINE void exp_of_negative(typename Isa::Vector* x) {
  using Vector = typename Isa::Vector;
  using Bits = typename Isa::Bits;
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then are
  const Vector least = Vector{} - 87.0f;
  const Vector y = *x < least ? least : *x;
  const Vector shifted = y * kLog2E + kMagic;
  const Vector n = shifted - kMagic;
  const Vector r = (y - n * kLn2High) - n * kLn2Low;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Unsigned, and not n itself as an integer: NaN has none.
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (uint32_t{127} << 23);
  Vector power;
  std::memcpy(&power, &bits, sizeof(power));
  *x = p * power;
}

/// The sum of each of kCount vectors' lanes, in the same order for every vector.
template <class Isa, size_t kCount>
MOTE_INLINE void add_lanes(typename Isa::Vector* vectors, float* sums) {
  constexpr size_t kWidth = kLanes<Isa>;
  static_assert(kCount % kWidth == 0);
  MOTE_UNROLL
  for (size_t i = 0; i < kCount / 2; ++i) Isa::add_pairs(vectors[2 * i], vectors[2 * i + 1], vectors + i);
  MOTE_UNROLL
  for (size_t i = 0; i < kCount / 4; ++i) Isa::add_pairs(vectors[2 * i], vectors[2 * i + 1], vectors + i);
  if constexpr (kWidth >= 8) {
    MOTE_UNROLL
    for (size_t i = 0; i < kCount / 8; ++i) Isa::add_blocks(vectors[2 * i], vectors[2 * i + 1], vectors + i);
  }
  if constexpr (kWidth >= 16) {
    MOTE_UNROLL
    for (size_t i = 0; i < kCount / 16; ++i) Isa::add_blocks(vectors[2 * i], vectors[2 * i + 1], vectors + i);
  }
  MOTE_UNROLL
  for (size_t i = 0; i < kCount / kWidth; ++i) store<Isa>(vectors[i], sums + i * kWidth);
}

/// What a row has seen so far: weights are relative to the greatest score.
struct Softmax {
  float peak, sum;
};

/// A row of a tile. Until the end `out` is the weighted sum of values, which is then divided by the sum of weights.
struct Row {
  const float* query;
  float* out;
  size_t num_keys;
};

/// Scores of kRows rows and `count` keys, and further ones that mean nothing, up to a multiple of the keys that are
/// taken at once. The order of a score's sums is the same for every kRows.
template <class Isa, size_t kRows>
MOTE_INLINE void compute_scores(const Row* rows, const float* keys, size_t stride, size_t count, size_t head_size,
                                float scale, float (*scores)[kKeysPerBlock]) {
  using Vector = typename Isa::Vector;
  constexpr size_t kKeys = Isa::kSums / kRows;
  const size_t whole = head_size / kLanes<Isa> * kLanes<Isa>;
  for (size_t first = 0; first < count; first += kKeys) {
    const float* key[kKeys];
    for (size_t k = 0; k < kKeys; ++k) key[k] = keys + std::min(first + k, count - 1) * stride;
    Vector sums[kRows * kKeys];
    MOTE_UNROLL
    for (size_t r = 0; r < kRows; ++r) {
      MOTE_UNROLL
      for (size_t k = 0; k < kKeys; ++k) sums[r * kKeys + k] = Vector{};
    }
    for (size_t i = 0; i < whole; i += kLanes<Isa>) {
      Vector queries[kRows];
      MOTE_UNROLL
      for (size_t r = 0; r < kRows; ++r) load<Isa>(rows[r].query + i, &queries[r]);
      MOTE_UNROLL
      for (size_t k = 0; k < kKeys; ++k) {
        Vector part;
        load<Isa>(key[k] + i, &part);
        MOTE_UNROLL
        for (size_t r = 0; r < kRows; ++r) sums[r * kKeys + k] += queries[r] * part;
      }
    }
    float dots[kRows * kKeys];
    add_lanes<Isa, kRows * kKeys>(sums, dots);
    for (size_t i = whole; i < head_size; ++i) {
      for (size_t r = 0; r < kRows; ++r) {
        for (size_t k = 0; k < kKeys; ++k) dots[r * kKeys + k] += rows[r].query[i] * key[k][i];
      }
    }
    MOTE_UNROLL
    for (size_t r = 0; r < kRows; ++r) {
      MOTE_UNROLL
      for (size_t k = 0; k < kKeys; ++k) scores[r][first + k] = scale * dots[r * kKeys + k];
    }
  }
}

/// Turns the scores of a block into weights, those behind `count` into 0.
template <class Isa>
MOTE_INLINE void weigh(float* scores, size_t count, size_t head_size, Softmax* softmax, float* out) {
  using Vector = typename Isa::Vector;
  constexpr size_t kWidth = kLanes<Isa>;
  for (size_t k = count; k < kKeysPerBlock; ++k) scores[k] = kMinusInfinity;
  Vector part, sums = {}, peaks = sums + kMinusInfinity;
  for (size_t k = 0; k < kKeysPerBlock; k += kWidth) {
    load<Isa>(scores + k, &part);
    peaks = peaks < part ? part : peaks;  // NaN is no peak
  }
  float parts[kWidth];
  store<Isa>(peaks, parts);
  for (size_t width = kWidth / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) parts[i] = std::max(parts[i], parts[i + width]);
  }
  const float peak = std::max(softmax->peak, parts[0]);
  if (peak > softmax->peak) {
    Vector factors = Vector{} + (softmax->peak - peak);
    exp_of_negative<Isa>(&factors);
    softmax->peak = peak;
    softmax->sum *= factors[0];
    for (size_t i = 0; i < head_size; ++i) out[i] *= factors[0];
  }
  for (size_t k = 0; k < kKeysPerBlock; k += kWidth) {
    load<Isa>(scores + k, &part);
    part -= peak;
    exp_of_negative<Isa>(&part);
    store<Isa>(part, scores + k);
  }
  for (size_t k = count; k < kKeysPerBlock; ++k) scores[k] = 0.0f;
  for (size_t k = 0; k < kKeysPerBlock; k += kWidth) {
    load<Isa>(scores + k, &part);
    sums += part;
  }
  store<Isa>(sums, parts);
  for (size_t width = kWidth / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) parts[i] += parts[i + width];
  }
  softmax->sum += parts[0];
}

/// Adds the values of keys `begin` to `end` to kRows rows, kColumns vectors of each from *column on.
template <class Isa, size_t kRows, size_t kColumns>
MOTE_INLINE void add_columns(const Row* rows, const float (*weights)[kKeysPerBlock], const float* values, size_t stride,
                             size_t begin, size_t end, size_t head_size, size_t* column) {
  using Vector = typename Isa::Vector;
  for (; *column + kColumns * kLanes<Isa> <= head_size; *column += kColumns * kLanes<Isa>) {
    Vector sums[kRows][kColumns];
    MOTE_UNROLL
    for (size_t r = 0; r < kRows; ++r) {
      MOTE_UNROLL
      for (size_t c = 0; c < kColumns; ++c) load<Isa>(rows[r].out + *column + c * kLanes<Isa>, &sums[r][c]);
    }
    for (size_t k = begin; k < end; ++k) {
      Vector value[kColumns];
      MOTE_UNROLL
      for (size_t c = 0; c < kColumns; ++c) {
        load<Isa>(values + k * stride + *column + c * kLanes<Isa>, &value[c]);
      }
      MOTE_UNROLL
      for (size_t r = 0; r < kRows; ++r) {
        MOTE_UNROLL
        for (size_t c = 0; c < kColumns; ++c) sums[r][c] += weights[r][k] * value[c];
      }
    }
    MOTE_UNROLL
    for (size_t r = 0; r < kRows; ++r) {
      MOTE_UNROLL
      for (size_t c = 0; c < kColumns; ++c) store<Isa>(sums[r][c], rows[r].out + *column + c * kLanes<Isa>);
    }
  }
}

template <class Isa, size_t kRows>
MOTE_INLINE void add_values(const Row* rows, const float (*weights)[kKeysPerBlock], const float* values, size_t stride,
                            size_t begin, size_t end, size_t head_size) {
  size_t column = 0;
  add_columns<Isa, kRows, Isa::kSums / kRows>(rows, weights, values, stride, begin, end, head_size, &column);
  add_columns<Isa, kRows, 1>(rows, weights, values, stride, begin, end, head_size, &column);
  for (; column < head_size; ++column) {
    for (size_t k = begin; k < end; ++k) {
      for (size_t r = 0; r < kRows; ++r) rows[r].out[column] += weights[r][k] * values[k * stride + column];
    }
  }
}

/// kRows rows, the last of which has the most keys, and the keys and values from position `first` on.
template <class Isa, size_t kRows>
MOTE_INLINE void attend_block(const AttentionShape& shape, const Row* rows, Softmax* softmax, const float* keys,
                              const float* values, size_t first) {
  const size_t stride = shape.key_heads * shape.head_size;
  float scores[kRows][kKeysPerBlock];
  size_t counts[kRows], common = kKeysPerBlock;
  for (size_t r = 0; r < kRows; ++r) {
    counts[r] = rows[r].num_keys > first ? std::min(kKeysPerBlock, rows[r].num_keys - first) : 0;
    common = std::min(common, counts[r]);
  }
  compute_scores<Isa, kRows>(rows, keys, stride, counts[kRows - 1], shape.head_size, shape.scale, scores);
  for (size_t r = 0; r < kRows; ++r) weigh<Isa>(scores[r], counts[r], shape.head_size, softmax + r, rows[r].out);
  add_values<Isa, kRows>(rows, scores, values, stride, 0, common, shape.head_size);
  // A weight of 0 does not hide a value that is not finite, so no row meets values behind its own position.
  for (size_t r = 0; r < kRows; ++r) {
    if (common == counts[r]) continue;
    add_values<Isa, 1>(rows + r, scores + r, values, stride, common, counts[r], shape.head_size);
  }
}

/// Up to kAttentionTile rows of one key head.
template <class Isa>
MOTE_INLINE void attend_tile(const AttentionShape& shape, const Row* rows, size_t num_rows, const float* keys,
                             const float* values) {
  const size_t stride = shape.key_heads * shape.head_size;
  Softmax softmax[kAttentionTile];
  for (size_t r = 0; r < num_rows; ++r) {
    softmax[r] = {kMinusInfinity, 0.0f};
    std::fill_n(rows[r].out, shape.head_size, 0.0f);
  }
  for (size_t first = 0; first < rows[num_rows - 1].num_keys; first += kKeysPerBlock) {
    const float* block_keys = keys + first * stride;
    const float* block_values = values + first * stride;
    for (size_t r = 0; r < num_rows;) {
      const size_t left = num_rows - r, taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      if (rows[r + taken - 1].num_keys > first) {
        const Row* some = rows + r;
        if (taken == 4) attend_block<Isa, 4>(shape, some, softmax + r, block_keys, block_values, first);
        if (taken == 2) attend_block<Isa, 2>(shape, some, softmax + r, block_keys, block_values, first);
        if (taken == 1) attend_block<Isa, 1>(shape, some, softmax + r, block_keys, block_values, first);
      }
      r += taken;
    }
  }
  for (size_t r = 0; r < num_rows; ++r) {
    for (size_t i = 0; i < shape.head_size; ++i) rows[r].out[i] /= softmax[r].sum;
  }
}

void attend_narrow(const AttentionShape& shape, const Row* rows, size_t num_rows, const float* keys,
                   const float* values) {
  attend_tile<Narrow>(shape, rows, num_rows, keys, values);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void attend_avx2(const AttentionShape& shape, const Row* rows, size_t num_rows,
                                                     const float* keys, const float* values) {
  attend_tile<Avx2>(shape, rows, num_rows, keys, values);
}

__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))) void attend_avx512(
    const AttentionShape& shape, const Row* rows, size_t num_rows, const float* keys, const float* values) {
  attend_tile<Avx512>(shape, rows, num_rows, keys, values);
}

/// Floats in the widest vectors that this processor and its system have, as far as there is code for them.
size_t widest() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 4;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  return has_avx512 ? 16 : 8;
}
#endif

using Tile = void (*)(const AttentionShape&, const Row*, size_t, const float*, const float*);

/// What is left of a head behind its whole vectors goes number by number, so vectors are wide only where they fit.
Tile choose_tile([[maybe_unused]] size_t head_size, [[maybe_unused]] size_t max_lanes) {
#if defined(__x86_64__)
  static const size_t lanes = widest();
  if (std::min(lanes, max_lanes) >= 16 && head_size % 16 == 0) return attend_avx512;
  if (std::min(lanes, max_lanes) >= 8) return attend_avx2;
#endif
  return attend_narrow;
}

}  // namespace

void attend(const AttentionShape& shape, const float* query, const float* keys, const float* values, float* out,
            size_t begin, size_t end, size_t max_lanes) {
  const Tile attend_rows = choose_tile(shape.head_size, max_lanes);
  const size_t group = shape.query_heads / shape.key_heads, rows_per_head = group * shape.length;
  for (size_t row = begin; row < end;) {
    const size_t key_head = row / rows_per_head;
    const size_t count = std::min({kAttentionTile, end - row, (key_head + 1) * rows_per_head - row});
    Row rows[kAttentionTile];
    for (size_t r = 0; r < count; ++r) {
      const size_t position = (row + r) % rows_per_head / group, head = key_head * group + (row + r) % group;
      const size_t offset = (position * shape.query_heads + head) * shape.head_size;
      rows[r] = {query + offset, out + offset, shape.start + (shape.is_causal ? position + 1 : shape.length)};
    }
    attend_rows(shape, rows, count, keys + key_head * shape.head_size, values + key_head * shape.head_size);
    row += count;
  }
}

}  // namespace mote::runner
