// The MoE layer of docs/operator.md, independent of any runtime. A plugin checks x itself, and for the rest fills these
// structs from its runtime's tensors, calls create() once, and compute() for every batch of tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/runtime.h"
#include "mote/status.h"

namespace mote {

/// Hyper-parameters of one layer; the names are those of docs/operator.md.
struct TernaryMoEConfig {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool normalize_topk = false;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  const char* activation = nullptr;  // zero-terminated, "silu"
  const char* packing = nullptr;     // zero-terminated, "2bit" or "1.6bit"
  int64_t layout_version = 0;
  const char* shared_format = nullptr;  // zero-terminated, "none", "bf16", "int8" or "int4"
  int64_t shared_group_size = 0;        // 32, 64, 128 or 256 for "int4", else 0
};

/// Weights of one layer, in the shapes of docs/operator.md. What the layer has not is left as it is (no data).
struct TernaryMoEWeights {
  TensorView router;                // float32 [E, H]
  TensorView gate_up_packed;        // uint8 [E, ceil(I/16), 2, ceil(H/C), 64], C = 16 or 20 by packing
  TensorView gate_up_scale;         // float32 [E, 2]
  TensorView down_packed;           // uint8 [E, ceil(H/16), ceil(I/C), 64]
  TensorView down_scale;            // float32 [E]
  TensorView shared_gate_up;        // uint8 [ceil(I/16), 2, ceil(H/Cs), 64], Cs = 2, 4 or 8 by shared_format
  TensorView shared_gate_up_scale;  // bfloat16 [ceil(I/16), 2, G, 16]
  TensorView shared_down;           // uint8 [ceil(H/16), ceil(I/Cs), 64]
  TensorView shared_down_scale;     // bfloat16 [ceil(H/16), G, 16]
};

/// A validated layer. Cheap to copy, immutable, usable from several threads at once.
class TernaryMoE {
 public:
  /// Checks every attribute, shape and scale; reads no packed weight. On failure *layer is unchanged.
  static Status create(const TernaryMoEConfig& config, const TernaryMoEWeights& weights, TernaryMoE* layer);

  /// Bytes of scratch that compute() needs for this many tokens, at an address aligned to 64. False if they do not fit
  /// size_t.
  bool scratch_size(size_t num_tokens, size_t* bytes) const;

  /// x, y: float32 [num_tokens, hidden_size], not overlapping. scratch: scratch_size() bytes, aligned to 64.
  /// False if the pool failed, which is not asked again then, or if scratch_size() is false; y then holds no result.
  [[nodiscard]] bool compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const;

  int64_t hidden_size() const { return hidden_size_; }

 private:
  friend class LayerRun;  // internal: the steps of compute()

  const float* router_ = nullptr;
  const uint8_t* gate_up_packed_ = nullptr;
  const float* gate_up_scale_ = nullptr;
  const uint8_t* down_packed_ = nullptr;
  const float* down_scale_ = nullptr;
  const uint8_t* shared_gate_up_ = nullptr;
  const void* shared_gate_up_scale_ = nullptr;
  const uint8_t* shared_down_ = nullptr;
  const void* shared_down_scale_ = nullptr;
  int64_t num_experts_ = 0;
  int64_t top_k_ = 0;
  bool normalize_topk_ = false;
  int64_t hidden_size_ = 0;
  int64_t intermediate_size_ = 0;
  WeightFormat packing_ = WeightFormat::kTwoBit;
  bool has_shared_ = false;
  WeightFormat shared_format_ = WeightFormat::kBf16;
  int64_t shared_group_size_ = 0;
};

}  // namespace mote
