// A second, independent reading of docs/operator.md and docs/layout.md: plain loops that share no code with the core.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mote::test {

/// A layer as plain arrays. Nothing here needs to be aligned; what the layer has not is null.
struct ReferenceLayer {
  size_t num_experts, top_k, hidden_size, intermediate_size;
  bool normalize_topk;
  std::string packing, shared_format;
  size_t shared_group_size;
  const void* router;
  const uint8_t* gate_up_packed;
  const void* gate_up_scale;
  const uint8_t* down_packed;
  const void* down_scale;
  const uint8_t* shared_gate_up;
  const void* shared_gate_up_scale;
  const uint8_t* shared_down;
  const void* shared_down_scale;
};

/// y[tokens, H] from x[tokens, H].
void reference_compute(const ReferenceLayer& layer, const float* x, float* y, size_t tokens);

struct ReferenceMatMul {
  size_t in_features, out_features;
  std::string packing;
  const uint8_t* packed;
  const void* scale;
};

/// y[tokens, N] from x[tokens, K].
void reference_matmul(const ReferenceMatMul& layer, const float* x, float* y, size_t tokens);

/// What the layer has not is null.
struct ReferenceQuantizedMatMul {
  size_t in_features, out_features;
  std::string format;
  size_t group_size;
  const uint8_t* weight;
  const void* scale;
  const void* bias;
};

/// y[tokens, N] from x[tokens, K].
void reference_quantized_matmul(const ReferenceQuantizedMatMul& layer, const float* x, float* y, size_t tokens);

/// exp as docs/operator.md defines it.
float reference_exp(float v);

}  // namespace mote::test
