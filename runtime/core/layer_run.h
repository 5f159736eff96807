// The steps of TernaryMoE::compute(), with the kernels as an argument, so that tests can run every ISA in one process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "layout.h"
#include "mote/ternary_moe.h"

namespace mote {

/// Where each buffer lies in the scratch memory. A slot is one (token, rank) pair; slots are sorted by expert.
struct ScratchLayout {
  size_t token_capacity;  // tokens per chunk
  size_t slot_capacity;   // token_capacity * top_k
  size_t x_stride;        // bytes between rows of x_codes
  size_t h_stride;        // floats between rows of h
  size_t h_code_stride;   // bytes between rows of h_codes

  // Offsets in bytes.
  size_t x_rows;         // QuantizedRow [tokens]
  size_t x_codes;        // int8 [tokens][x_stride]
  size_t experts;        // uint32 [tokens][top_k], by rank
  size_t gates;          // float [tokens][top_k]
  size_t slots;          // uint32 [tokens][top_k]
  size_t token_of_slot;  // uint32 [slots]
  size_t h;              // float [slots][h_stride]
  size_t h_rows;         // QuantizedRow [slots]
  size_t h_codes;        // int8 [slots][h_code_stride]
  size_t results;        // float [ceil(H/16)][slots][16]

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
  [[nodiscard]] static bool lay_out_scratch(const TernaryMoE& layer, size_t token_capacity, ScratchLayout* plan);

  struct Range {
    size_t begin;
    size_t end;
  };

  [[nodiscard]] bool run_chunk(const float* x, float* y, size_t num_tokens);
  void route_token(size_t token);
  void group_by_expert();
  void plan_expert_tasks();
  void down_blocks(size_t expert, size_t first_block, size_t end_block);
  void combine_block(size_t block);
  float* results_of_block(size_t block) const;
  Range next_tile(size_t begin, size_t end) const;
  static void set_row(const QuantizedRow& row, const int8_t* codes, size_t i, TokenTile* tile);

  // Steps that run in parallel.
  template <void (LayerRun::*Step)(size_t)>
  [[nodiscard]] bool for_each(size_t count);
  void prepare_task(size_t task);
  void gate_up_task(size_t task);
  void quantize_h_task(size_t task);
  void down_task(size_t task);

  const TernaryMoE& layer_;
  const KernelTable& kernels_;
  const ScratchLayout& plan_;
  const ThreadPool& threads_;
  size_t hidden_size_;
  size_t intermediate_size_;
  size_t top_k_;
  size_t hidden_lines_;        // lines of a block of gate or up, and blocks of rows of down
  size_t intermediate_lines_;  // the same of down, and blocks of rows of gate and up

  QuantizedRow* x_rows_;
  int8_t* x_codes_;
  uint32_t* experts_;
  float* gates_;
  uint32_t* slots_;
  uint32_t* token_of_slot_;
  float* h_;
  QuantizedRow* h_rows_;
  int8_t* h_codes_;
  float* results_;

  // Of the chunk in progress.
  const float* x_ = nullptr;
  float* y_ = nullptr;
  size_t num_tokens_ = 0;
  size_t num_slots_ = 0;
  size_t tokens_per_task_ = 1;
  size_t slots_per_task_ = 1;
  size_t first_slot_[kMaxExperts + 1];        // of each expert
  size_t first_gate_up_task_[kMaxExperts + 1];
  size_t gate_up_blocks_per_task_[kMaxExperts];
  size_t down_blocks_per_task_ = 1;
};

}  // namespace mote
