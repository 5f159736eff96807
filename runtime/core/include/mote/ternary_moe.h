// The MoE layer of docs/operator.md, independent of any runtime. A plugin checks x itself, and for the rest fills these
// structs from its runtime's tensors, calls create() once, and compute() for every batch of tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/status.h"

namespace mote {

/// The only layout this core reads. An export of another version is refused.
inline constexpr int64_t kLayoutVersion = 1;

/// Hyper-parameters of one layer; the names are those of docs/operator.md.
struct TernaryMoEConfig {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool normalize_topk = false;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  const char* activation = nullptr;  // zero-terminated, "silu"
  const char* packing = nullptr;     // zero-terminated, "2bit"
  int64_t layout_version = 0;
};

/// A tensor owned by the runtime: data is not copied and must outlive the layer. No alignment is assumed.
struct TensorView {
  const void* data = nullptr;
  const int64_t* shape = nullptr;
  size_t rank = 0;
};

/// Weights of one layer, in the shapes of docs/operator.md.
struct TernaryMoEWeights {
  TensorView router;          // float32 [E, H]
  TensorView gate_up_packed;  // uint8 [E, ceil(I/16), 2, ceil(H/16), 64]
  TensorView gate_up_scale;   // float32 [E, 2]
  TensorView down_packed;     // uint8 [E, ceil(H/16), ceil(I/16), 64]
  TensorView down_scale;      // float32 [E]
};

/// How the core asks the runtime's thread pool for work: run task(arg, i) for every i in [0, count), in any order,
/// on any threads, and return true when all are done. False says that some were not run and that none is running any more.
/// A null `run` means: serially, on the caller's thread.
struct ThreadPool {
  bool (*run)(void* pool, void (*task)(void* arg, size_t index), size_t count, void* arg) = nullptr;
  void* pool = nullptr;
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
  int64_t num_experts_ = 0;
  int64_t top_k_ = 0;
  bool normalize_topk_ = false;
  int64_t hidden_size_ = 0;
  int64_t intermediate_size_ = 0;
};

/// Name of the instruction set chosen for this process: "scalar", "avx2", "avx512vnni". Chosen once, from CPUID, or from the
/// environment variable MOTE_ISA (for tests; an ISA the CPU lacks is refused and the best one is used).
const char* isa_name();

}  // namespace mote
