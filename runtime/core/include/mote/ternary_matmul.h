// One ternary linear layer, mote::TernaryMatMul of docs/operator.md, independent of any runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/packed_matrix.h"
#include "mote/runtime.h"
#include "mote/status.h"

namespace mote {

struct TernaryMatMulConfig {
  int64_t in_features = 0;
  int64_t out_features = 0;
  const char* packing = nullptr;  // zero-terminated, "2bit" or "1.6bit"
  int64_t layout_version = 0;
};

struct TernaryMatMulWeights {
  TensorView packed;  // uint8 [ceil(N/16), ceil(K/C), 64]
  TensorView scale;   // float32 [1]
};

/// A validated layer. Cheap to copy, immutable, usable from several threads at once.
class TernaryMatMul {
 public:
  /// Checks every attribute, shape and scale; reads no packed weight. On failure *layer is unchanged.
  static Status create(const TernaryMatMulConfig& config, const TernaryMatMulWeights& weights, TernaryMatMul* layer);

  /// Bytes of scratch that compute() needs for this many tokens, at an address aligned to 64. False if they do not fit
  /// size_t.
  bool scratch_size(size_t num_tokens, size_t* bytes) const;

  /// x: float32 [num_tokens, in_features], y: [num_tokens, out_features], not overlapping. scratch: scratch_size() bytes,
  /// aligned to 64. False if the pool failed or if scratch_size() is false; y then holds no result.
  [[nodiscard]] bool compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const;

  int64_t in_features() const { return matrix_.in_features; }
  int64_t out_features() const { return matrix_.out_features; }
  const PackedMatrix& matrix() const { return matrix_; }

 private:
  PackedMatrix matrix_;
};

}  // namespace mote
