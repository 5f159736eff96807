// One linear layer that is not ternary, mote::QuantizedMatMul of docs/operator.md, independent of any runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/packed_matrix.h"
#include "mote/runtime.h"
#include "mote/status.h"

namespace mote {

struct QuantizedMatMulConfig {
  int64_t in_features = 0;
  int64_t out_features = 0;
  const char* format = nullptr;  // zero-terminated, "bf16", "int8" or "int4"
  int64_t group_size = 0;        // 32, 64, 128 or 256 for "int4", else 0
  int64_t layout_version = 0;
};

/// What the layer has not is left as it is (no data).
struct QuantizedMatMulWeights {
  TensorView weight;  // uint8 [ceil(N/16), ceil(K/C), 64], C = 2, 4 or 8 by format
  TensorView scale;   // bfloat16 [ceil(N/16), G, 16]; not for "bf16"
  TensorView bias;    // float32 [N]
};

/// A validated layer. Cheap to copy, immutable, usable from several threads at once.
class QuantizedMatMul {
 public:
  /// Checks every attribute, shape, scale and the bias; reads no packed weight. On failure *layer is unchanged.
  static Status create(const QuantizedMatMulConfig& config, const QuantizedMatMulWeights& weights,
                       QuantizedMatMul* layer);

  /// These two are as those of TernaryMatMul.
  bool scratch_size(size_t num_tokens, size_t* bytes) const;
  [[nodiscard]] bool compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const;

  int64_t in_features() const { return matrix_.in_features; }
  int64_t out_features() const { return matrix_.out_features; }
  const PackedMatrix& matrix() const { return matrix_; }

 private:
  PackedMatrix matrix_;
};

}  // namespace mote
