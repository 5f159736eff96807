// The steps of a linear layer's compute(), with the kernels as an argument, so that tests can run every ISA in one process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "mote/packed_matrix.h"
#include "task_cut.h"
#include "trace.h"

namespace mote {

/// Where each buffer lies in the scratch memory.
struct MatMulScratch {
  size_t token_capacity;  // tokens per chunk

  // Offsets in bytes.
  size_t rows;        // QuantizedRow [tokens]
  size_t codes;       // int8 [tokens][code_row_size(K)]
  size_t group_sums;  // int32 [tokens][groups]
  size_t tiles;       // TokenTile::inputs of all tiles
  size_t tile_sums;   // TokenTile::group_sums of all tiles

  size_t total_bytes;
};

/// One call of compute(). Tokens are taken in chunks, which bounds the scratch memory.
class MatMulRun {
 public:
  /// What the layers' functions of these names do.
  static bool scratch_size(const PackedMatrix& matrix, size_t num_tokens, size_t* bytes);
  [[nodiscard]] static bool compute(const PackedMatrix& matrix, const float* x, float* y, size_t num_tokens,
                                    void* scratch, const ThreadPool& threads);

  /// The plan for a call with this many tokens, in chunks of nearly equal size. False if it does not fit size_t.
  [[nodiscard]] static bool plan_scratch(const PackedMatrix& matrix, size_t num_tokens, MatMulScratch* plan);

  /// `plan` must be one of this matrix, for any number of tokens, and `scratch` hold its total_bytes.
  MatMulRun(const PackedMatrix& matrix, const KernelTable& kernels, const MatMulScratch& plan, void* scratch,
            const ThreadPool& threads);

  /// False at the first failure of the pool.
  [[nodiscard]] bool run(const float* x, float* y, size_t num_tokens);

 private:
  /// What follows from a matrix' sizes.
  struct Shape {
    BlockShape block;
    size_t num_groups;   // whose sums the kernels need: 0 for formats without groups, and for int8, whose only one is the row
    size_t scale_bytes;  // of a block
    size_t row_bytes;    // of a row of inputs in a tile
  };

  static Shape shape_of(const PackedMatrix& matrix);
  [[nodiscard]] static bool lay_out_scratch(const PackedMatrix& matrix, size_t token_capacity, MatMulScratch* plan);

  [[nodiscard]] bool run_chunk(const float* x, float* y, size_t num_tokens);
  bool is_float() const { return matrix_.format == WeightFormat::kBf16; }
  bool is_ternary() const { return matrix_.group_scales == nullptr && !is_float(); }
  size_t tile_begin(size_t tile) const;
  void prepare_tile(size_t tile);
  TokenTile token_tile(size_t tile) const;
  Block block_of(size_t block) const;
  void write_results(const float* results, size_t block, size_t first_token, size_t count);
  size_t stored_bytes(const Range& blocks) const;

  // Steps that run in parallel.
  void quantize_task(size_t task);
  void multiply_task(size_t task);

  const PackedMatrix& matrix_;
  const FormatKernels& format_;
  const KernelTable& kernels_;
  const MatMulScratch& plan_;
  const ThreadPool& threads_;
  const TraceCall trace_;
  size_t in_features_;
  size_t out_features_;
  Shape shape_;

  QuantizedRow* rows_;
  int8_t* codes_;
  int32_t* group_sums_;
  char* tiles_;
  int32_t* tile_sums_;

  // Of the chunk in progress.
  const float* x_ = nullptr;
  float* y_ = nullptr;
  size_t num_tokens_ = 0;
  size_t num_tiles_ = 0;
  size_t tiles_per_task_ = 1;
  TaskCut multiply_tasks_;
};

}  // namespace mote
