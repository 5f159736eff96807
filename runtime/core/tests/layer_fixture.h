// Random layers, and ways to run them: what the tests of the layer share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "mote/ternary_moe.h"

namespace mote::test {

using Rng = std::mt19937_64;

struct Dimensions {
  int64_t num_experts = 1;
  int64_t top_k = 1;
  int64_t hidden_size = 1;
  int64_t intermediate_size = 1;
  bool normalize_topk = false;
};

std::string to_string(const Dimensions& dimensions);

/// Heap memory of exactly `size` bytes that begins at an odd offset of an allocation, so that neither alignment nor
/// bytes beyond the end can be relied upon.
class Unaligned {
 public:
  Unaligned() = default;
  Unaligned(size_t size, size_t offset) : bytes_(offset + size), offset_(offset) {}
  uint8_t* data() { return bytes_.data() + offset_; }
  const uint8_t* data() const { return bytes_.data() + offset_; }
  size_t size() const { return bytes_.size() - offset_; }

  void set_float(size_t index, float value);
  float get_float(size_t index) const;

 private:
  std::vector<uint8_t> bytes_;
  size_t offset_ = 0;
};

/// The tensors of a layer and their shapes. Packed bytes are random, so code 3 and nonsense in the padding occur.
struct LayerTensors {
  LayerTensors(const Dimensions& dimensions, Rng& rng);

  TernaryMoEConfig config;
  Unaligned router, gate_up_packed, gate_up_scale, down_packed, down_scale;
  std::vector<int64_t> router_shape, gate_up_packed_shape, gate_up_scale_shape, down_packed_shape, down_scale_shape;

  TernaryMoEWeights weights() const;
  /// The layer; a failure of create() fails the test.
  TernaryMoE create() const;
  /// What docs/operator.md says the layer gives.
  std::vector<float> expected(const std::vector<float>& x) const;
};

/// Values of many magnitudes: ordinary, zero, denormal, huge.
std::vector<float> random_values(size_t count, Rng& rng);

/// The instruction sets that this machine can run.
std::vector<IsaEntry> supported_isas();

/// Runs the layer on one instruction set, in scratch memory full of rubbish.
std::vector<float> compute(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                           const ThreadPool& threads = {});

/// The same with scratch memory for so many tokens, and so in chunks of that size at most.
std::vector<float> compute_in_chunks(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads = {});

/// Fails the test unless both have the same bits.
void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what);

}  // namespace mote::test
