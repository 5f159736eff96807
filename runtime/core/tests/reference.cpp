#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace mote::test {
namespace {

float float_at(const void* base, size_t index) {
  float value;
  std::memcpy(&value, static_cast<const char*>(base) + 4 * index, 4);
  return value;
}

float canonical(float v) {
  const uint32_t bits = 0x7fc00000;
  if (std::isnan(v)) std::memcpy(&v, &bits, 4);
  return v;
}

size_t ceil16(size_t n) { return (n + 15) / 16; }

/// t of row n, input k; `block` maps a block of rows to the index of its first line.
template <class FirstLine>
int ternary(const uint8_t* packed, FirstLine first_line, size_t n, size_t k) {
  const size_t r = n % 16, p = k % 16 / 4, j = k % 4;
  const uint8_t byte = packed[(first_line(n / 16) + k / 16) * 64 + 4 * r + j];
  return byte / (1 << (2 * p)) % 4 - 1;
}

struct Quantized {
  bool finite = true;
  float d = 0;
  std::vector<int> q;
};

Quantized quantize(const std::vector<float>& v) {
  Quantized out;
  float a = 0;
  for (float value : v) {
    if (!std::isfinite(value)) out.finite = false;
    a = std::max(a, std::fabs(value));
  }
  if (!out.finite) return out;
  const float m = std::max(a, 1e-5f);
  const float s = 127.0f / m;
  out.d = m / 127.0f;
  for (float value : v) {
    const float scaled = value * s;
    out.q.push_back(static_cast<int>(std::min(127.0f, std::max(-128.0f, std::nearbyint(scaled)))));
  }
  return out;
}

float logit(const float* x, const void* router, size_t expert, size_t hidden) {
  float lane[16] = {};
  for (size_t j = 0; j < 16; ++j) {
    for (size_t k = j; k < hidden; k += 16) {
      const float product = x[k] * float_at(router, expert * hidden + k);
      lane[j] = lane[j] + product;
    }
  }
  for (size_t j = 0; j < 8; ++j) lane[j] = lane[j] + lane[j + 8];
  for (size_t j = 0; j < 4; ++j) lane[j] = lane[j] + lane[j + 4];
  for (size_t j = 0; j < 2; ++j) lane[j] = lane[j] + lane[j + 2];
  return lane[0] + lane[1];
}

float dequantized(int64_t acc, float d, float scale) {
  const float factor = d * scale;
  return static_cast<float>(acc) * factor;
}

float silu(float v) {
  const float denominator = 1.0f + reference_exp(-v);
  return v / denominator;
}

/// D of one expert for one quantized token.
std::vector<float> expert_output(const ReferenceLayer& layer, size_t e, const Quantized& x) {
  const size_t H = layer.hidden_size, I = layer.intermediate_size;
  std::vector<float> h(I);
  for (size_t n = 0; n < I; ++n) {
    int64_t acc[2] = {0, 0};
    for (size_t which = 0; which < 2; ++which) {
      auto first_line = [&](size_t nb) { return ((e * ceil16(I) + nb) * 2 + which) * ceil16(H); };
      for (size_t k = 0; k < H; ++k) acc[which] += ternary(layer.gate_up_packed, first_line, n, k) * x.q[k];
    }
    const float gate = dequantized(acc[0], x.d, float_at(layer.gate_up_scale, 2 * e));
    const float up = dequantized(acc[1], x.d, float_at(layer.gate_up_scale, 2 * e + 1));
    h[n] = silu(gate) * up;
  }
  const Quantized hq = quantize(h);
  std::vector<float> result(H, std::numeric_limits<float>::quiet_NaN());
  if (!hq.finite) return result;
  for (size_t n = 0; n < H; ++n) {
    int64_t acc = 0;
    auto first_line = [&](size_t nb) { return (e * ceil16(H) + nb) * ceil16(I); };
    for (size_t k = 0; k < I; ++k) acc += ternary(layer.down_packed, first_line, n, k) * hq.q[k];
    result[n] = dequantized(acc, hq.d, float_at(layer.down_scale, e));
  }
  return result;
}

void compute_token(const ReferenceLayer& layer, const float* x, float* y) {
  const size_t H = layer.hidden_size, E = layer.num_experts;
  const Quantized q = quantize(std::vector<float>(x, x + H));
  std::vector<float> l(E);
  bool finite = q.finite;
  for (size_t i = 0; i < E; ++i) {
    l[i] = logit(x, layer.router, i, H);
    finite = finite && std::isfinite(l[i]);
  }
  if (!finite) {
    std::fill_n(y, H, canonical(std::numeric_limits<float>::quiet_NaN()));
    return;
  }

  const float greatest = *std::max_element(l.begin(), l.end());
  std::vector<float> p(E);
  float sum = 0;
  for (size_t i = 0; i < E; ++i) {
    p[i] = reference_exp(l[i] - greatest);
    sum = sum + p[i];
  }
  for (float& value : p) value = value / sum;

  std::vector<size_t> order(E);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return l[a] > l[b]; });
  float selected = 0;
  for (size_t r = 0; r < layer.top_k; ++r) selected = selected + p[order[r]];

  for (size_t r = 0; r < layer.top_k; ++r) {
    const float g = layer.normalize_topk ? p[order[r]] / selected : p[order[r]];
    const std::vector<float> d = expert_output(layer, order[r], q);
    for (size_t n = 0; n < H; ++n) {
      const float term = g * d[n];
      y[n] = r == 0 ? term : y[n] + term;
    }
  }
  for (size_t n = 0; n < H; ++n) y[n] = canonical(y[n]);
}

}  // namespace

float reference_exp(float v) {
  v = v > -87.0f ? v : -87.0f;
  v = v < 88.0f ? v : 88.0f;
  const float n = std::nearbyint(v * 1.44269504f);
  const float high = n * 0.693359375f;
  float r = v - high;
  const float low = n * -2.12194440e-4f;
  r = r - low;
  const float z = r * r;
  float p = 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    const float product = p * r;
    p = product + c;
  }
  p = p * z;
  p = p + r;
  p = p + 1.0f;
  return p * std::ldexp(1.0f, static_cast<int>(n));
}

void reference_compute(const ReferenceLayer& layer, const float* x, float* y, size_t tokens) {
  for (size_t t = 0; t < tokens; ++t) compute_token(layer, x + t * layer.hidden_size, y + t * layer.hidden_size);
}

}  // namespace mote::test
