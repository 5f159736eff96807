#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <utility>
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

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

/// 16 bits, little endian.
int bits_at(const void* base, size_t index) {
  const auto* bytes = static_cast<const uint8_t*>(base) + 2 * index;
  return bytes[0] + 256 * bytes[1];
}

float from_bf16(int bits) {
  const uint32_t widened = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &widened, 4);
  return value;
}

/// C of docs/layout.md.
size_t line_inputs(const std::string& format) {
  if (format == "2bit") return 16;
  if (format == "1.6bit") return 20;
  if (format == "int4") return 8;
  if (format == "int8") return 4;
  return 2;  // bf16
}

/// The value of input i of row r of a line, without its scale; of bf16 its bits.
int value_in_line(const std::string& format, const uint8_t* line, size_t r, size_t i) {
  if (format == "bf16") return bits_at(line + 4 * r, i);
  const int byte = line[4 * r + i % 4];
  const size_t plane = i / 4;
  if (format == "int8") return byte < 128 ? byte : byte - 256;
  if (format == "int4") return (plane == 0 ? byte % 16 : byte / 16) - 8;
  const int base = format == "2bit" ? 4 : 3;
  int codes = format == "2bit" ? byte : std::min(byte, 242);
  for (size_t p = 0; p < plane; ++p) codes /= base;
  return codes % base - 1;
}

/// A matrix taken out of its lines, which stand in a tensor that interleaves `parts` matrices by block of rows.
struct Matrix {
  Matrix(const std::string& format, size_t rows, size_t cols, const uint8_t* packed, size_t parts, size_t part)
      : format(format), rows(rows), cols(cols), values(rows * cols) {
    const size_t inputs = line_inputs(format);
    for (size_t n = 0; n < rows; ++n) {
      const uint8_t* block = packed + (n / 16 * parts + part) * ceil_div(cols, inputs) * 64;
      for (size_t k = 0; k < cols; ++k) {
        values[n * cols + k] = value_in_line(format, block + k / inputs * 64, n % 16, k % inputs);
      }
      if (format == "bf16" && cols % 2 != 0) beyond.push_back(value_in_line(format, block + cols / 2 * 64, n % 16, 1));
    }
  }

  void set_scale(float scale) { scales.assign(rows, scale); }

  /// bfloat16 [ceil(rows / 16)][parts][groups][16]
  void set_group_scales(const void* packed_scales, size_t inputs_per_group, size_t parts, size_t part) {
    group_inputs = inputs_per_group;
    const size_t groups = ceil_div(cols, group_inputs);
    for (size_t n = 0; n < rows; ++n) {
      for (size_t i = 0; i < groups; ++i) {
        scales.push_back(from_bf16(bits_at(packed_scales, ((n / 16 * parts + part) * groups + i) * 16 + n % 16)));
      }
    }
  }

  std::string format;
  size_t rows, cols;
  std::vector<int> values;    // [rows, cols], see value_in_line
  std::vector<int> beyond;    // [rows], the weight that fills up the last line of an odd row of bf16
  std::vector<float> scales;  // [rows], or [rows, groups]
  size_t group_inputs = 0;    // 0 for ternary matrices
};

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

int64_t integer_dot(const Matrix& matrix, size_t n, size_t begin, size_t end, const std::vector<int>& q) {
  int64_t acc = 0;
  for (size_t k = begin; k < end; ++k) acc += matrix.values[n * matrix.cols + k] * q[k];
  return acc;
}

float integer_row(const Matrix& matrix, size_t n, const Quantized& v) {
  if (matrix.group_inputs == 0) {
    const float factor = v.d * matrix.scales[n];
    return static_cast<float>(integer_dot(matrix, n, 0, matrix.cols, v.q)) * factor;
  }
  float a = 0;
  const size_t groups = ceil_div(matrix.cols, matrix.group_inputs);
  for (size_t i = 0; i < groups; ++i) {
    const size_t begin = i * matrix.group_inputs;
    const size_t end = std::min(matrix.cols, begin + matrix.group_inputs);
    const float product = static_cast<float>(integer_dot(matrix, n, begin, end, v.q)) * matrix.scales[n * groups + i];
    a = a + product;
  }
  return a * v.d;
}

float bf16_row(const Matrix& matrix, size_t n, const std::vector<float>& v) {
  float s[2] = {0, 0};
  for (size_t k = 0; k < matrix.cols; ++k) {
    const float product = from_bf16(matrix.values[n * matrix.cols + k]) * v[k];
    s[k % 2] = s[k % 2] + product;
  }
  if (matrix.cols % 2 != 0) {
    const float product = from_bf16(matrix.beyond[n]) * 0.0f;
    s[1] = s[1] + product;
  }
  return s[0] + s[1];
}

/// The matrix times v, quantized where its format asks for that. NaN if a value of v is not finite, in every format.
std::vector<float> multiply(const Matrix& matrix, const std::vector<float>& v) {
  std::vector<float> out(matrix.rows, std::numeric_limits<float>::quiet_NaN());
  const Quantized q = quantize(v);
  for (size_t n = 0; n < matrix.rows && q.finite; ++n) {
    out[n] = matrix.format == "bf16" ? bf16_row(matrix, n, v) : integer_row(matrix, n, q);
  }
  return out;
}

float silu(float v) {
  const float denominator = 1.0f + reference_exp(-v);
  return v / denominator;
}

/// One expert's matrices, or those of the shared one.
struct Ffn {
  Matrix gate, up, down;

  std::vector<float> operator()(const std::vector<float>& x) const {
    const std::vector<float> gates = multiply(gate, x), ups = multiply(up, x);
    std::vector<float> h(gates.size());
    for (size_t n = 0; n < h.size(); ++n) h[n] = silu(gates[n]) * ups[n];
    return multiply(down, h);
  }
};

Ffn take_out(const std::string& format, size_t H, size_t I, const uint8_t* gate_up, const uint8_t* down) {
  return {Matrix(format, I, H, gate_up, 2, 0), Matrix(format, I, H, gate_up, 2, 1), Matrix(format, H, I, down, 1, 0)};
}

/// A layer whose experts are taken out of their lines when they are first needed.
class Experts {
 public:
  explicit Experts(const ReferenceLayer& layer) : layer_(layer) {}

  const Ffn& routed(size_t e) {
    const auto found = ffns_.find(e);
    if (found != ffns_.end()) return found->second;
    const size_t H = layer_.hidden_size, I = layer_.intermediate_size, C = line_inputs(layer_.packing);
    Ffn ffn = take_out(layer_.packing, H, I, layer_.gate_up_packed + e * ceil_div(I, 16) * 2 * ceil_div(H, C) * 64,
                       layer_.down_packed + e * ceil_div(H, 16) * ceil_div(I, C) * 64);
    ffn.gate.set_scale(float_at(layer_.gate_up_scale, 2 * e));
    ffn.up.set_scale(float_at(layer_.gate_up_scale, 2 * e + 1));
    ffn.down.set_scale(float_at(layer_.down_scale, e));
    return ffns_.emplace(e, std::move(ffn)).first->second;
  }

  const Ffn& shared() {
    const auto found = ffns_.find(layer_.num_experts);
    if (found != ffns_.end()) return found->second;
    const size_t H = layer_.hidden_size, I = layer_.intermediate_size, g = layer_.shared_group_size;
    Ffn ffn = take_out(layer_.shared_format, H, I, layer_.shared_gate_up, layer_.shared_down);
    if (layer_.shared_format != "bf16") {
      // The only group of int8 is the whole row.
      ffn.gate.set_group_scales(layer_.shared_gate_up_scale, g == 0 ? H : g, 2, 0);
      ffn.up.set_group_scales(layer_.shared_gate_up_scale, g == 0 ? H : g, 2, 1);
      ffn.down.set_group_scales(layer_.shared_down_scale, g == 0 ? I : g, 1, 0);
    }
    return ffns_.emplace(layer_.num_experts, std::move(ffn)).first->second;
  }

 private:
  const ReferenceLayer& layer_;
  std::map<size_t, Ffn> ffns_;
};

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

std::vector<float> softmax(const std::vector<float>& l) {
  const float greatest = *std::max_element(l.begin(), l.end());
  std::vector<float> p;
  float sum = 0;
  for (const float logit : l) {
    p.push_back(reference_exp(logit - greatest));
    sum = sum + p.back();
  }
  for (float& value : p) value = value / sum;
  return p;
}

void compute_token(const ReferenceLayer& layer, Experts& experts, const float* x, float* y) {
  const size_t H = layer.hidden_size, E = layer.num_experts;
  const std::vector<float> row(x, x + H);
  std::vector<float> l(E);
  for (size_t i = 0; i < E; ++i) l[i] = logit(x, layer.router, i, H);
  if (!all_finite(row) || !all_finite(l)) {
    std::fill_n(y, H, canonical(std::numeric_limits<float>::quiet_NaN()));
    return;
  }

  const std::vector<float> p = softmax(l);
  std::vector<size_t> order(E);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return l[a] > l[b]; });
  float selected = 0;
  for (size_t r = 0; r < layer.top_k; ++r) selected = selected + p[order[r]];

  for (size_t r = 0; r < layer.top_k; ++r) {
    const float g = layer.normalize_topk ? p[order[r]] / selected : p[order[r]];
    const std::vector<float> d = experts.routed(order[r])(row);
    for (size_t n = 0; n < H; ++n) {
      const float term = g * d[n];
      y[n] = r == 0 ? term : y[n] + term;
    }
  }
  if (layer.shared_format != "none") {
    const std::vector<float> s = experts.shared()(row);
    for (size_t n = 0; n < H; ++n) y[n] = s[n] + y[n];
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
  Experts experts(layer);
  for (size_t t = 0; t < tokens; ++t) {
    compute_token(layer, experts, x + t * layer.hidden_size, y + t * layer.hidden_size);
  }
}

void reference_matmul(const ReferenceMatMul& layer, const float* x, float* y, size_t tokens) {
  const size_t K = layer.in_features, N = layer.out_features;
  Matrix matrix(layer.packing, N, K, layer.packed, 1, 0);
  matrix.set_scale(float_at(layer.scale, 0));
  for (size_t t = 0; t < tokens; ++t) {
    const std::vector<float> row = multiply(matrix, std::vector<float>(x + t * K, x + (t + 1) * K));
    for (size_t n = 0; n < N; ++n) y[t * N + n] = canonical(row[n]);
  }
}

void reference_quantized_matmul(const ReferenceQuantizedMatMul& layer, const float* x, float* y, size_t tokens) {
  const size_t K = layer.in_features, N = layer.out_features;
  Matrix matrix(layer.format, N, K, layer.weight, 1, 0);
  if (layer.format != "bf16") {
    matrix.set_group_scales(layer.scale, layer.group_size == 0 ? K : layer.group_size, 1, 0);
  }
  for (size_t t = 0; t < tokens; ++t) {
    const std::vector<float> row = multiply(matrix, std::vector<float>(x + t * K, x + (t + 1) * K));
    for (size_t n = 0; n < N; ++n) {
      y[t * N + n] = canonical(layer.bias == nullptr ? row[n] : row[n] + float_at(layer.bias, n));
    }
  }
}

}  // namespace mote::test
