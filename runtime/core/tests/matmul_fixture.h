// Random ternary linear layers, and a way to run them.
#pragma once

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

/// Runs the layer on one instruction set, with scratch memory for so many tokens.
std::vector<float> compute_in_chunks(const TernaryMatMul& layer, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads = {});

}  // namespace mote::test
