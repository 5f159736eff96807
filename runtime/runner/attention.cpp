#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace mote::runner {
namespace {

constexpr size_t kKeysPerBlock = 64;
constexpr size_t kLanes = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The loops are plain ones that compilers turn into vectors; on x86 also for machines with AVX2, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define MOTE_FOR_EACH_ISA __attribute__((target_clones("default", "avx2,fma")))
#else
#define MOTE_FOR_EACH_ISA
#endif

/// exp(x) of x at most 0, to 2 units in the last place: 2^n times a polynomial of the rest. NaN gives NaN. Without a branch or a
/// call, so that a loop over it becomes vectors.
inline float exp_of_negative(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then are
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * kLog2E + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Unsigned, and not n itself as an integer: NaN has none.
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits << 23) + (uint32_t{127} << 23);
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

inline float dot(const float* a, const float* b, size_t count) {
  float sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0.0f;
  for (size_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// One row over all its keys, in blocks whose weights are relative to the greatest score so far. `scores`: kKeysPerBlock floats.
MOTE_FOR_EACH_ISA
void attend_row(const float* query, const float* keys, const float* values, size_t stride, size_t num_keys,
                size_t head_size, float scale, float* scores, float* out) {
  float peak = kMinusInfinity, sum = 0.0f;
  std::fill_n(out, head_size, 0.0f);
  for (size_t first = 0; first < num_keys; first += kKeysPerBlock) {
    const size_t count = std::min(kKeysPerBlock, num_keys - first);
    float block_peak = kMinusInfinity;
    for (size_t k = 0; k < count; ++k) {
      scores[k] = scale * dot(query, keys + (first + k) * stride, head_size);
      block_peak = std::max(block_peak, scores[k]);
    }
    const float new_peak = std::max(peak, block_peak);
    if (first > 0 && new_peak > peak) {
      const float factor = exp_of_negative(peak - new_peak);
      sum *= factor;
      for (size_t i = 0; i < head_size; ++i) out[i] *= factor;
    }
    peak = new_peak;
    for (size_t k = 0; k < count; ++k) scores[k] = exp_of_negative(scores[k] - peak);
    for (size_t k = 0; k < count; ++k) {
      const float weight = scores[k];
      const float* value = values + (first + k) * stride;
      sum += weight;
      for (size_t i = 0; i < head_size; ++i) out[i] += weight * value[i];
    }
  }
  for (size_t i = 0; i < head_size; ++i) out[i] /= sum;
}

}  // namespace

void attend(const AttentionShape& shape, const float* query, const float* keys, const float* values, float* out,
            size_t begin, size_t end) {
  const size_t stride = shape.key_heads * shape.head_size;
  const size_t group = shape.query_heads / shape.key_heads;
  float scores[kKeysPerBlock];
  for (size_t row = begin; row < end; ++row) {
    const size_t head = row / shape.length, position = row % shape.length;
    const size_t num_keys = shape.start + (shape.is_causal ? position + 1 : shape.length);
    const size_t offset = (position * shape.query_heads + head) * shape.head_size;
    const size_t key_offset = head / group * shape.head_size;
    attend_row(query + offset, keys + key_offset, values + key_offset, stride, num_keys, shape.head_size, shape.scale,
               scores, out + offset);
  }
}

}  // namespace mote::runner
