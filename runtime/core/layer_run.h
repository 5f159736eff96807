// The steps of TernaryMoE::compute(), with the kernels as an argument, so that tests can run every ISA in one process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "layout.h"
#include "mote/ternary_moe.h"
#include "task_cut.h"
#include "trace.h"

namespace mote {

/// Where each buffer lies in the scratch memory. A slot is a row of an expert: a (token, rank) pair for the routed experts, and
/// behind those a token for the shared one. Slots are sorted by expert; some consecutive slots of an expert are a tile.
struct ScratchLayout {
  size_t token_capacity;  // tokens per chunk
  size_t slot_capacity;

  // Offsets in bytes.
  size_t x_rows;          // QuantizedRow [tokens]
  size_t x_codes;         // int8 [tokens][code_row_size(H)]
  size_t x_group_sums;    // int32 [tokens][groups of H]
  size_t experts;         // uint32 [tokens][top_k], by rank
  size_t gates;           // float [tokens][top_k]
  size_t slots;           // uint32 [tokens][top_k]
  size_t shared_slots;    // uint32 [tokens]
  size_t token_of_slot;   // uint32 [slots]
  size_t tiles;           // Tile [slots]
  size_t x_tiles;         // TokenTile::inputs of all tiles, x
  size_t x_tile_sums;     // TokenTile::group_sums of the shared expert's tiles, x
  size_t h;               // float [slots][h_stride]
  size_t h_rows;          // QuantizedRow [slots]
  size_t h_codes;         // int8 [slots][code_row_size(I)]
  size_t h_group_sums;    // int32 [shared slots][groups of I]
  size_t h_tiles;         // like x_tiles, h
  size_t h_tile_sums;     // like x_tile_sums, h
  size_t results;         // float [ceil(H/16)][slots][16]

  size_t total_bytes;
};

/// One call of compute(). Tokens are taken in chunks, which bounds the scratch memory; a token's result does not depend
/// on the others, so chunks change no bit.
class LayerRun {
 public:
  /// The plan for a call with this many tokens, in chunks of nearly equal size. False if it does not fit size_t.
  [[nodiscard]] static bool plan_scratch(const TernaryMoE& layer, size_t num_tokens, ScratchLayout* plan);

  /// `plan` must be one of this layer, for any number of tokens, and `scratch` hold its total_bytes.
  LayerRun(const TernaryMoE& layer, const KernelTable& kernels, const ScratchLayout& plan, void* scratch,
           const ThreadPool& threads);

  /// False at the first failure of the pool: what the later steps would read was not written.
  [[nodiscard]] bool run(const float* x, float* y, size_t num_tokens);

 private:
  /// Gate and up, or down, as the kernels and the tiles see them.
  struct MatrixShape {
    BlockShape block;
    size_t num_inputs;
    size_t group_inputs;  // 0 for formats without groups, and for int8, whose only group's sum is that of the row
    size_t num_groups;    // 0 likewise
    size_t row_bytes;     // of a row of inputs in a tile
  };

  /// What the routed experts have in common, and the same of the shared one.
  struct FfnShape {
    WeightFormat format;
    MatrixShape gate_up;  // inputs: x
    MatrixShape down;     // inputs: h
    bool is_float() const { return format == WeightFormat::kBf16; }
  };

  struct Tile {
    uint32_t ffn;
    uint32_t first_slot;
    uint32_t count;
  };

  static MatrixShape matrix_shape(WeightFormat format, size_t num_inputs, size_t group_inputs);
  static FfnShape routed_shape(const TernaryMoE& layer);
  static FfnShape shared_shape(const TernaryMoE& layer);
  [[nodiscard]] static bool lay_out_scratch(const TernaryMoE& layer, size_t token_capacity, ScratchLayout* plan);

  [[nodiscard]] bool run_chunk(const float* x, float* y, size_t num_tokens);
  void route_token(size_t token);
  void group_by_expert();
  void cut_tiles();
  void plan_tasks();
  bool is_shared(size_t ffn) const { return ffn == num_experts_; }
  const FfnShape& shape_of(size_t ffn) const { return is_shared(ffn) ? shared_ : routed_; }
  size_t row_offset(size_t slot, size_t routed_bytes, size_t shared_bytes) const;
  void gather(const Tile& tile, const MatrixShape& shape, const void* const* rows, const int32_t* const* group_sums,
              char* tiles, int32_t* tile_sums) const;
  TokenTile x_tile(const Tile& tile) const;
  TokenTile h_tile(const Tile& tile) const;
  Block gate_up_block(size_t ffn, size_t block, size_t which) const;
  Block down_block(size_t ffn, size_t block) const;
  void combine_block(size_t block);
  void quantize_h(const Tile& tile);
  uint16_t traced_expert(size_t ffn) const { return is_shared(ffn) ? kSharedExpert : static_cast<uint16_t>(ffn); }
  size_t traced_tokens(size_t first_tile, size_t end_tile) const;
  void trace_routes() const;
  size_t stored_bytes(size_t ffn, const MatrixShape& shape, size_t matrices, const Range& blocks) const;
  template <class Work>
  void for_tiles_of_each_expert(Phase phase, const Range& tiles, Work work) const;
  float* results_of_block(size_t block) const;

  // Steps that run in parallel.
  void prepare_task(size_t task);
  void gather_x_task(size_t task);
  void gate_up_task(size_t task);
  void quantize_h_task(size_t task);
  void down_task(size_t task);

  const TernaryMoE& layer_;
  const KernelTable& kernels_;
  const ScratchLayout& plan_;
  const ThreadPool& threads_;
  const TraceCall trace_;
  size_t hidden_size_;
  size_t intermediate_size_;
  size_t num_experts_;
  size_t num_ffns_;  // with the shared expert, whose index is num_experts_
  size_t top_k_;
  FfnShape routed_;
  FfnShape shared_;
  size_t hidden_blocks_;
  size_t intermediate_blocks_;
  size_t h_stride_;

  QuantizedRow* x_rows_;
  int8_t* x_codes_;
  int32_t* x_group_sums_;
  uint32_t* experts_;
  float* gates_;
  uint32_t* slots_;
  uint32_t* shared_slots_;
  uint32_t* token_of_slot_;
  Tile* tiles_;
  char* x_tiles_;
  int32_t* x_tile_sums_;
  float* h_;
  QuantizedRow* h_rows_;
  int8_t* h_codes_;
  int32_t* h_group_sums_;
  char* h_tiles_;
  int32_t* h_tile_sums_;
  float* results_;

  // Of the chunk in progress.
  const float* x_ = nullptr;
  float* y_ = nullptr;
  size_t first_token_ = 0;  // of the chunk, in the call
  size_t num_tokens_ = 0;
  size_t num_routed_slots_ = 0;
  size_t num_slots_ = 0;
  size_t num_tiles_ = 0;
  size_t tokens_per_task_ = 1;
  size_t x_tiles_per_task_ = 1;
  size_t h_tiles_per_task_ = 1;
  TaskCut down_tasks_;
  // Of each expert, the shared one last.
  size_t first_slot_[kMaxExperts + 2];
  size_t first_tile_[kMaxExperts + 2];
  size_t first_gate_up_task_[kMaxExperts + 2];
  TaskCut gate_up_tasks_[kMaxExperts + 1];
};

}  // namespace mote
