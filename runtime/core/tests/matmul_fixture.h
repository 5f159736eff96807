// Random linear layers, ternary and quantized, and a way to run them.
#pragma once

#include "mote/quantized_matmul.h"
#include "mote/ternary_matmul.h"
#include "tensors.h"

namespace mote::test {

struct MatMulTensors {
  MatMulTensors(int64_t in_features, int64_t out_features, const char* packing, Rng& rng);

  TernaryMatMulConfig config;
  Tensor packed, scale;

  TernaryMatMulWeights weights() const { return {packed.view(), scale.view()}; }
  /// The layer; a failure of create() fails the test.
  TernaryMatMul create() const;
  /// What docs/operator.md says the layer gives.
  std::vector<float> expected(const std::vector<float>& x) const;
};

struct QuantizedMatMulTensors {
  QuantizedMatMulTensors(int64_t in_features, int64_t out_features, const char* format, int64_t group_size, bool has_bias,
                         Rng& rng);

  QuantizedMatMulConfig config;
  Tensor weight, scale, bias;

  QuantizedMatMulWeights weights() const { return {weight.view(), scale.view(), bias.view()}; }
  /// These two as above.
  QuantizedMatMul create() const;
  std::vector<float> expected(const std::vector<float>& x) const;
};

/// Runs the matrix on one instruction set, with scratch memory for so many tokens.
std::vector<float> compute_in_chunks(const PackedMatrix& matrix, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads = {});

inline std::vector<float> compute_in_chunks(const TernaryMatMul& layer, const IsaEntry& isa,
                                            const std::vector<float>& x, size_t tokens_per_chunk,
                                            const ThreadPool& threads = {}) {
  return compute_in_chunks(layer.matrix(), isa, x, tokens_per_chunk, threads);
}

inline std::vector<float> compute_in_chunks(const QuantizedMatMul& layer, const IsaEntry& isa,
                                            const std::vector<float>& x, size_t tokens_per_chunk,
                                            const ThreadPool& threads = {}) {
  return compute_in_chunks(layer.matrix(), isa, x, tokens_per_chunk, threads);
}

}  // namespace mote::test
