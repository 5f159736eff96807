// The steps of TernaryMatMul::compute(), with the kernels as an argument, so that tests can run every ISA in one process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "mote/ternary_matmul.h"
#include "task_cut.h"
#include "trace.h"

namespace mote {

/// Where each buffer lies in the scratch memory.
struct MatMulScratch {
  size_t token_capacity;  // tokens per chunk

  // Offsets in bytes.
  size_t rows;   // QuantizedRow [tokens]
  size_t codes;  // int8 [tokens][code_row_size(K)]
  size_t tiles;  // the same, interleaved by tiles

  size_t total_bytes;
};

/// One call of compute(). Tokens are taken in chunks, which bounds the scratch memory.
class MatMulRun {
 public:
  /// The plan for a call with this many tokens, in chunks of nearly equal size. False if it does not fit size_t.
  [[nodiscard]] static bool plan_scratch(const TernaryMatMul& layer, size_t num_tokens, MatMulScratch* plan);

  /// `plan` must be one of this layer, for any number of tokens, and `scratch` hold its total_bytes.
  MatMulRun(const TernaryMatMul& layer, const KernelTable& kernels, const MatMulScratch& plan, void* scratch,
            const ThreadPool& threads);

  /// False at the first failure of the pool.
  [[nodiscard]] bool run(const float* x, float* y, size_t num_tokens);

 private:
  [[nodiscard]] static bool lay_out_scratch(const TernaryMatMul& layer, size_t token_capacity, MatMulScratch* plan);

  [[nodiscard]] bool run_chunk(const float* x, float* y, size_t num_tokens);
  size_t tile_begin(size_t tile) const;

  // Steps that run in parallel.
  void quantize_task(size_t task);
  void multiply_task(size_t task);

  const TernaryMatMul& layer_;
  const FormatKernels& format_;
  const KernelTable& kernels_;
  const MatMulScratch& plan_;
  const ThreadPool& threads_;
  const TraceCall trace_;
  size_t in_features_;
  size_t out_features_;
  BlockShape shape_;

  QuantizedRow* rows_;
  int8_t* codes_;
  int8_t* tiles_;

  // Of the chunk in progress.
  const float* x_ = nullptr;
  float* y_ = nullptr;
  size_t num_tokens_ = 0;
  size_t num_tiles_ = 0;
  size_t tiles_per_task_ = 1;
  TaskCut multiply_tasks_;
};

}  // namespace mote
