// Random layers, and ways to run them: what the tests of the layer share.
#pragma once

#include "mote/ternary_moe.h"
#include "tensors.h"

namespace mote::test {

struct Dimensions {
  int64_t num_experts = 1;
  int64_t top_k = 1;
  int64_t hidden_size = 1;
  int64_t intermediate_size = 1;
  bool normalize_topk = false;
  std::string packing = "2bit";
  std::string shared_format = "none";
  int64_t shared_group_size = 0;
};

std::string to_string(const Dimensions& dimensions);

/// How the weights of a layer are stored.
struct Formats {
  const char* packing;
  const char* shared_format;
  int64_t shared_group_size;
};

/// Every packing with every shared expert.
inline constexpr Formats kFormats[] = {
    {"2bit", "none", 0},    {"1.6bit", "bf16", 0},  {"2bit", "int8", 0},    {"1.6bit", "int4", 32},
    {"2bit", "int4", 64},   {"1.6bit", "int4", 128}, {"2bit", "bf16", 0},    {"1.6bit", "none", 0},
    {"2bit", "int4", 32},   {"1.6bit", "int8", 0},  {"2bit", "int4", 128},  {"1.6bit", "int4", 64},
};

Dimensions with_formats(Dimensions dimensions, const Formats& formats);

/// The tensors of a layer. Packed bytes are random, so damaged codes and nonsense in the padding occur.
struct LayerTensors {
  LayerTensors(const Dimensions& dimensions, Rng& rng);

  TernaryMoEConfig config;  // its words are those of `dimensions`
  Dimensions dimensions;
  Tensor router, gate_up_packed, gate_up_scale, down_packed, down_scale;
  Tensor shared_gate_up, shared_gate_up_scale, shared_down, shared_down_scale;

  // The words in `config` would point into the original.
  LayerTensors(const LayerTensors&) = delete;
  LayerTensors& operator=(const LayerTensors&) = delete;

  TernaryMoEWeights weights() const;
  /// The layer; a failure of create() fails the test.
  TernaryMoE create() const;
  /// What docs/operator.md says the layer gives.
  std::vector<float> expected(const std::vector<float>& x) const;

 private:
  void make_shared(Rng& rng);
};

/// Runs the layer on one instruction set.
std::vector<float> compute(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                           const ThreadPool& threads = {});

/// The same with scratch memory for so many tokens, and so in chunks of that size at most.
std::vector<float> compute_in_chunks(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads = {});

}  // namespace mote::test
