#include "layer_run.h"

#include <algorithm>
#include <cstring>

#include "scratch.h"

namespace mote {
namespace {

constexpr uint32_t kCanonicalNan = 0x7fc00000;

}  // namespace

LayerRun::MatrixShape LayerRun::matrix_shape(WeightFormat format, size_t num_inputs, size_t group_inputs) {
  MatrixShape shape;
  shape.num_inputs = num_inputs;
  shape.group_inputs = group_inputs;
  shape.num_groups = group_inputs == 0 ? 0 : ceil_div(num_inputs, group_inputs);
  shape.block.num_lines = num_lines(format, num_inputs);
  shape.block.lines_per_group = group_inputs == 0 ? shape.block.num_lines : group_inputs / line_inputs(format);
  shape.row_bytes = format == WeightFormat::kBf16 ? shape.block.num_lines * line_inputs(format) * sizeof(float)
                                                  : code_row_size(num_inputs);
  return shape;
}

LayerRun::FfnShape LayerRun::routed_shape(const TernaryMoE& layer) {
  return {layer.packing_, matrix_shape(layer.packing_, static_cast<size_t>(layer.hidden_size_), 0),
          matrix_shape(layer.packing_, static_cast<size_t>(layer.intermediate_size_), 0)};
}

LayerRun::FfnShape LayerRun::shared_shape(const TernaryMoE& layer) {
  if (!layer.has_shared_) return {};
  const auto group = static_cast<size_t>(layer.shared_group_size_);
  return {layer.shared_format_, matrix_shape(layer.shared_format_, static_cast<size_t>(layer.hidden_size_), group),
          matrix_shape(layer.shared_format_, static_cast<size_t>(layer.intermediate_size_), group)};
}

bool LayerRun::lay_out_scratch(const TernaryMoE& layer, size_t token_capacity, ScratchLayout* plan) {
  const auto hidden = static_cast<size_t>(layer.hidden_size_);
  const auto intermediate = static_cast<size_t>(layer.intermediate_size_);
  const auto top_k = static_cast<size_t>(layer.top_k_);
  const FfnShape routed = routed_shape(layer);
  const FfnShape shared = shared_shape(layer);
  size_t routed_slots = 0;
  const size_t shared_slots = layer.has_shared_ ? token_capacity : 0;
  plan->token_capacity = token_capacity;
  if (!checked_mul(token_capacity, top_k, &routed_slots)) return false;
  if (!checked_add(routed_slots, shared_slots, &plan->slot_capacity)) return false;
  const size_t slots = plan->slot_capacity;

  Carver carver;
  plan->x_rows = carver.reserve(token_capacity, 1, sizeof(QuantizedRow));
  plan->x_codes = carver.reserve(token_capacity, code_row_size(hidden), sizeof(int8_t));
  plan->x_group_sums = carver.reserve(shared_slots, shared.gate_up.num_groups, sizeof(int32_t));
  plan->experts = carver.reserve(token_capacity, top_k, sizeof(uint32_t));
  plan->gates = carver.reserve(token_capacity, top_k, sizeof(float));
  plan->slots = carver.reserve(token_capacity, top_k, sizeof(uint32_t));
  plan->shared_slots = carver.reserve(shared_slots, 1, sizeof(uint32_t));
  plan->token_of_slot = carver.reserve(slots, 1, sizeof(uint32_t));
  plan->tiles = carver.reserve(slots, 1, sizeof(Tile));
  plan->x_tiles = carver.reserve(routed_slots, routed.gate_up.row_bytes, 1);
  carver.reserve(shared_slots, shared.gate_up.row_bytes, 1);
  plan->x_tile_sums = carver.reserve(shared_slots, shared.gate_up.num_groups, sizeof(int32_t));
  plan->h = carver.reserve(slots, num_blocks(intermediate) * kBlockRows, sizeof(float));
  plan->h_rows = carver.reserve(slots, 1, sizeof(QuantizedRow));
  plan->h_codes = carver.reserve(slots, code_row_size(intermediate), sizeof(int8_t));
  plan->h_group_sums = carver.reserve(shared_slots, shared.down.num_groups, sizeof(int32_t));
  plan->h_tiles = carver.reserve(routed_slots, routed.down.row_bytes, 1);
  carver.reserve(shared_slots, shared.down.row_bytes, 1);
  plan->h_tile_sums = carver.reserve(shared_slots, shared.down.num_groups, sizeof(int32_t));
  plan->results = carver.reserve(slots, num_blocks(hidden) * kBlockRows, sizeof(float));
  plan->total_bytes = carver.bytes();
  return carver.fits();
}

bool LayerRun::plan_scratch(const TernaryMoE& layer, size_t num_tokens, ScratchLayout* plan) {
  if (!lay_out_scratch(layer, 1, plan)) return false;
  return lay_out_scratch(layer, chunk_tokens(num_tokens, plan->total_bytes), plan);
}

LayerRun::LayerRun(const TernaryMoE& layer, const KernelTable& kernels, const ScratchLayout& plan, void* scratch,
                   const ThreadPool& threads)
    : layer_(layer),
      kernels_(kernels),
      plan_(plan),
      threads_(threads),
      trace_(layer.gate_up_packed_),
      hidden_size_(static_cast<size_t>(layer.hidden_size_)),
      intermediate_size_(static_cast<size_t>(layer.intermediate_size_)),
      num_experts_(static_cast<size_t>(layer.num_experts_)),
      num_ffns_(num_experts_ + (layer.has_shared_ ? 1 : 0)),
      top_k_(static_cast<size_t>(layer.top_k_)),
      routed_(routed_shape(layer)),
      shared_(shared_shape(layer)),
      hidden_blocks_(num_blocks(hidden_size_)),
      intermediate_blocks_(num_blocks(intermediate_size_)),
      h_stride_(intermediate_blocks_ * kBlockRows),
      x_rows_(at<QuantizedRow>(scratch, plan.x_rows)),
      x_codes_(at<int8_t>(scratch, plan.x_codes)),
      x_group_sums_(at<int32_t>(scratch, plan.x_group_sums)),
      experts_(at<uint32_t>(scratch, plan.experts)),
      gates_(at<float>(scratch, plan.gates)),
      slots_(at<uint32_t>(scratch, plan.slots)),
      shared_slots_(at<uint32_t>(scratch, plan.shared_slots)),
      token_of_slot_(at<uint32_t>(scratch, plan.token_of_slot)),
      tiles_(at<Tile>(scratch, plan.tiles)),
      x_tiles_(at<char>(scratch, plan.x_tiles)),
      x_tile_sums_(at<int32_t>(scratch, plan.x_tile_sums)),
      h_(at<float>(scratch, plan.h)),
      h_rows_(at<QuantizedRow>(scratch, plan.h_rows)),
      h_codes_(at<int8_t>(scratch, plan.h_codes)),
      h_group_sums_(at<int32_t>(scratch, plan.h_group_sums)),
      h_tiles_(at<char>(scratch, plan.h_tiles)),
      h_tile_sums_(at<int32_t>(scratch, plan.h_tile_sums)),
      results_(at<float>(scratch, plan.results)) {}

bool LayerRun::run(const float* x, float* y, size_t num_tokens) {
  const Span span(trace_, Phase::kLayer, kNoExpert, num_tokens);
  for (size_t done = 0; done < num_tokens; done += plan_.token_capacity) {
    const size_t count = std::min(plan_.token_capacity, num_tokens - done);
    first_token_ = done;
    if (!run_chunk(x + done * hidden_size_, y + done * hidden_size_, count)) return false;
  }
  return true;
}

bool LayerRun::run_chunk(const float* x, float* y, size_t num_tokens) {
  x_ = x;
  y_ = y;
  num_tokens_ = num_tokens;

  tokens_per_task_ = ceil_div(kValuesPerTask, hidden_size_);
  if (!for_each<&LayerRun::prepare_task>(this, threads_, ceil_div(num_tokens_, tokens_per_task_))) return false;

  group_by_expert();
  cut_tiles();
  plan_tasks();
  trace_routes();
  if (!for_each<&LayerRun::gather_x_task>(this, threads_, ceil_div(num_tiles_, x_tiles_per_task_))) return false;
  if (!for_each<&LayerRun::gate_up_task>(this, threads_, first_gate_up_task_[num_ffns_])) return false;
  if (!for_each<&LayerRun::quantize_h_task>(this, threads_, ceil_div(num_tiles_, h_tiles_per_task_))) return false;
  return for_each<&LayerRun::down_task>(this, threads_, down_tasks_.count());
}

void LayerRun::prepare_task(size_t task) {
  const size_t begin = task * tokens_per_task_;
  const size_t end = std::min(num_tokens_, begin + tokens_per_task_);
  const MatrixShape& shape = shared_.gate_up;
  {
    const Span span(trace_, Phase::kQuantize, kNoExpert, end - begin);
    for (size_t token = begin; token < end; ++token) {
      int32_t* group_sums = shape.num_groups == 0 ? nullptr : x_group_sums_ + token * shape.num_groups;
      x_rows_[token] = kernels_.quantize_row(x_ + token * hidden_size_, hidden_size_, shape.group_inputs,
                                             x_codes_ + token * code_row_size(hidden_size_), group_sums);
    }
  }
  const Span span(trace_, Phase::kRouter, kNoExpert, end - begin, num_experts_ * hidden_size_ * sizeof(float));
  for (size_t token = begin; token < end; ++token) {
    if (x_rows_[token].finite) route_token(token);
  }
}

/// Fills experts_ and gates_ of the token. One whose logits are not finite is marked as not finite itself.
void LayerRun::route_token(size_t token) {
  alignas(kScratchAlignment) float logits[kMaxExperts];
  alignas(kScratchAlignment) float probabilities[kMaxExperts];
  if (!kernels_.route(x_ + token * hidden_size_, layer_.router_, num_experts_, hidden_size_, logits, probabilities)) {
    x_rows_[token].finite = false;
    return;
  }

  uint32_t* experts = experts_ + token * top_k_;
  float* gates = gates_ + token * top_k_;
  bool taken[kMaxExperts] = {};
  float sum = 0.0f;
  for (size_t rank = 0; rank < top_k_; ++rank) {
    size_t best = num_experts_;
    for (size_t i = 0; i < num_experts_; ++i) {
      if (!taken[i] && (best == num_experts_ || logits[i] > logits[best])) best = i;
    }
    taken[best] = true;
    experts[rank] = static_cast<uint32_t>(best);
    gates[rank] = probabilities[best];
    sum = sum + gates[rank];
  }
  if (layer_.normalize_topk_) {
    for (size_t rank = 0; rank < top_k_; ++rank) gates[rank] = gates[rank] / sum;
  }
}

/// A counting sort of (token, rank) by expert, and behind it the tokens once more for the shared expert. Tokens that are not
/// finite get no slot.
void LayerRun::group_by_expert() {
  std::fill_n(first_slot_, num_experts_ + 1, size_t{0});
  for (size_t token = 0; token < num_tokens_; ++token) {
    if (!x_rows_[token].finite) continue;
    for (size_t rank = 0; rank < top_k_; ++rank) ++first_slot_[experts_[token * top_k_ + rank] + 1];
  }
  for (size_t e = 0; e < num_experts_; ++e) first_slot_[e + 1] += first_slot_[e];
  num_routed_slots_ = first_slot_[num_experts_];
  num_slots_ = num_routed_slots_;

  size_t next[kMaxExperts];
  std::copy_n(first_slot_, num_experts_, next);
  for (size_t token = 0; token < num_tokens_; ++token) {
    if (!x_rows_[token].finite) continue;
    for (size_t rank = 0; rank < top_k_; ++rank) {
      const size_t slot = next[experts_[token * top_k_ + rank]]++;
      slots_[token * top_k_ + rank] = static_cast<uint32_t>(slot);
      token_of_slot_[slot] = static_cast<uint32_t>(token);
    }
    if (!layer_.has_shared_) continue;
    shared_slots_[token] = static_cast<uint32_t>(num_slots_);
    token_of_slot_[num_slots_++] = static_cast<uint32_t>(token);
  }
  first_slot_[num_ffns_] = num_slots_;
}

/// Cuts the slots of each expert into tiles of nearly equal size: 17 are better taken as 9 and 8 than as 16 and 1.
void LayerRun::cut_tiles() {
  num_tiles_ = 0;
  for (size_t ffn = 0; ffn < num_ffns_; ++ffn) {
    first_tile_[ffn] = num_tiles_;
    const size_t tile_tokens = kernels_.formats[static_cast<size_t>(shape_of(ffn).format)].tile_tokens;
    const size_t end = first_slot_[ffn + 1];
    for (size_t slot = first_slot_[ffn]; slot < end;) {
      const size_t tiles_left = ceil_div(end - slot, tile_tokens);
      const size_t count = ceil_div(end - slot, tiles_left);
      tiles_[num_tiles_++] = {static_cast<uint32_t>(ffn), static_cast<uint32_t>(slot), static_cast<uint32_t>(count)};
      slot += count;
    }
  }
  first_tile_[num_ffns_] = num_tiles_;
}

/// Cuts tiles into tasks by their values, and blocks of rows by lines times tiles: for gate and up those of one expert, for
/// down those of all experts together.
void LayerRun::plan_tasks() {
  const size_t tiles = std::max<size_t>(1, num_tiles_);
  x_tiles_per_task_ = ceil_div(tiles, ceil_div(num_slots_ * hidden_size_ + 1, kValuesPerTask));
  h_tiles_per_task_ = ceil_div(tiles, ceil_div(num_slots_ * intermediate_size_ + 1, kValuesPerTask));

  size_t lines_of_down_block = 0;
  first_gate_up_task_[0] = 0;
  for (size_t ffn = 0; ffn < num_ffns_; ++ffn) {
    const size_t ffn_tiles = first_tile_[ffn + 1] - first_tile_[ffn];
    gate_up_tasks_[ffn] = TaskCut(intermediate_blocks_, 2 * shape_of(ffn).gate_up.block.num_lines * ffn_tiles);
    first_gate_up_task_[ffn + 1] = first_gate_up_task_[ffn] + gate_up_tasks_[ffn].count();
    lines_of_down_block += shape_of(ffn).down.block.num_lines * ffn_tiles;
  }
  // Rows that are not finite have no tile, but their results are written all the same.
  down_tasks_ = TaskCut(hidden_blocks_, std::max<size_t>(1, lines_of_down_block));
}

/// Calls work(tile) for each of these tiles, in a span for those of one expert.
template <class Work>
void LayerRun::for_tiles_of_each_expert(Phase phase, const Range& tiles, Work work) const {
  for (size_t begin = tiles.begin; begin < tiles.end;) {
    const size_t ffn = tiles_[begin].ffn;
    const size_t end = std::min(tiles.end, first_tile_[ffn + 1]);
    const Span span(trace_, phase, traced_expert(ffn), traced_tokens(begin, end));
    for (size_t i = begin; i < end; ++i) work(tiles_[i]);
    begin = end;
  }
}

/// Tokens of consecutive tiles of one expert.
size_t LayerRun::traced_tokens(size_t first_tile, size_t end_tile) const {
  const Tile& last = tiles_[end_tile - 1];
  return last.first_slot + last.count - tiles_[first_tile].first_slot;
}

void LayerRun::trace_routes() const {
  if (!trace_.is_on()) return;
  const uint64_t now = TraceCall::now_ns();
  for (size_t token = 0; token < num_tokens_; ++token) {
    if (!x_rows_[token].finite) continue;
    for (size_t rank = 0; rank < top_k_; ++rank) {
      trace_.record_route(static_cast<uint16_t>(experts_[token * top_k_ + rank]), first_token_ + token, rank, now);
    }
  }
}

/// Bytes of weights and scales in some blocks of so many matrices of an expert. Several tiles read them again, but from the cache.
size_t LayerRun::stored_bytes(size_t ffn, const MatrixShape& shape, size_t matrices, const Range& blocks) const {
  size_t block_bytes = shape.block.num_lines * kLineBytes;
  if (is_shared(ffn)) {
    if (!shared_.is_float()) block_bytes += std::max<size_t>(1, shape.num_groups) * kBlockRows * sizeof(uint16_t);
    return matrices * (blocks.end - blocks.begin) * block_bytes;
  }
  // A ternary matrix has one scale, which goes to the first block.
  const size_t scale_bytes = blocks.begin == 0 ? sizeof(float) : 0;
  return matrices * ((blocks.end - blocks.begin) * block_bytes + scale_bytes);
}

/// Where the row of a slot begins in a buffer of rows of the routed experts and, behind them, of the shared one.
size_t LayerRun::row_offset(size_t slot, size_t routed_bytes, size_t shared_bytes) const {
  if (slot < num_routed_slots_) return slot * routed_bytes;
  return num_routed_slots_ * routed_bytes + (slot - num_routed_slots_) * shared_bytes;
}

/// Interleaves the rows of a tile, and their group sums.
void LayerRun::gather(const Tile& tile, const MatrixShape& shape, const void* const* rows,
                      const int32_t* const* group_sums, char* tiles, int32_t* tile_sums) const {
  constexpr size_t kWord = sizeof(int32_t);
  const size_t words = shape.row_bytes / kWord;
  // Rows of codes are padded, those of floats are the caller's.
  const size_t num_words = shape_of(tile.ffn).is_float() ? shape.num_inputs : words;
  kernels_.interleave(rows, tile.count, num_words, words, tiles);
  if (shape.num_groups == 0) return;
  const void* sums[kMaxTileTokens];
  std::copy_n(group_sums, tile.count, sums);
  kernels_.interleave(sums, tile.count, shape.num_groups, shape.num_groups,
                      tile_sums + (tile.first_slot - num_routed_slots_) * shape.num_groups);
}

void LayerRun::gather_x_task(size_t task) {
  const Range tiles = {task * x_tiles_per_task_, std::min(num_tiles_, (task + 1) * x_tiles_per_task_)};
  for_tiles_of_each_expert(Phase::kGather, tiles, [this](const Tile& tile) {
    const FfnShape& ffn = shape_of(tile.ffn);
    const void* rows[kMaxTileTokens];
    const int32_t* sums[kMaxTileTokens];
    for (size_t t = 0; t < tile.count; ++t) {
      const size_t token = token_of_slot_[tile.first_slot + t];
      rows[t] = ffn.is_float() ? static_cast<const void*>(x_ + token * hidden_size_)
                               : x_codes_ + token * code_row_size(hidden_size_);
      sums[t] = x_group_sums_ + token * ffn.gate_up.num_groups;
    }
    gather(tile, ffn.gate_up, rows, sums,
           x_tiles_ + row_offset(tile.first_slot, routed_.gate_up.row_bytes, shared_.gate_up.row_bytes), x_tile_sums_);
  });
}

void LayerRun::quantize_h_task(size_t task) {
  const Range tiles = {task * h_tiles_per_task_, std::min(num_tiles_, (task + 1) * h_tiles_per_task_)};
  for_tiles_of_each_expert(Phase::kQuantizeHidden, tiles, [this](const Tile& tile) { quantize_h(tile); });
}

/// Quantizes h, or only looks whether it is finite where the expert computes in float, and interleaves it.
void LayerRun::quantize_h(const Tile& tile) {
  const FfnShape& ffn = shape_of(tile.ffn);
  const void* rows[kMaxTileTokens];
  const int32_t* sums[kMaxTileTokens];
  for (size_t t = 0; t < tile.count; ++t) {
    const size_t slot = tile.first_slot + t;
    float* h = h_ + slot * h_stride_;
    int8_t* codes = h_codes_ + slot * code_row_size(intermediate_size_);
    sums[t] = nullptr;
    int32_t* group_sums = nullptr;
    if (ffn.down.num_groups != 0) {
      sums[t] = group_sums = h_group_sums_ + (slot - num_routed_slots_) * ffn.down.num_groups;
    }
    h_rows_[slot] = kernels_.quantize_row(h, intermediate_size_, ffn.down.group_inputs, codes, group_sums);
    rows[t] = codes;
    if (!ffn.is_float()) continue;
    // One NaN makes all outputs of the token NaN, which is what an h that is not finite gives in every format.
    if (!h_rows_[slot].finite) std::memcpy(h, &kCanonicalNan, sizeof(float));
    rows[t] = h;
  }
  gather(tile, ffn.down, rows, sums,
         h_tiles_ + row_offset(tile.first_slot, routed_.down.row_bytes, shared_.down.row_bytes), h_tile_sums_);
}

TokenTile LayerRun::x_tile(const Tile& tile) const {
  TokenTile out;
  out.count = tile.count;
  out.inputs = x_tiles_ + row_offset(tile.first_slot, routed_.gate_up.row_bytes, shared_.gate_up.row_bytes);
  out.group_sums = nullptr;
  if (is_shared(tile.ffn)) {
    out.group_sums = x_tile_sums_ + (tile.first_slot - num_routed_slots_) * shared_.gate_up.num_groups;
  }
  for (size_t t = 0; t < tile.count; ++t) {
    const QuantizedRow& row = x_rows_[token_of_slot_[tile.first_slot + t]];
    out.d[t] = row.d;
    out.sum[t] = row.sum;
  }
  return out;
}

TokenTile LayerRun::h_tile(const Tile& tile) const {
  TokenTile out;
  out.count = tile.count;
  out.inputs = h_tiles_ + row_offset(tile.first_slot, routed_.down.row_bytes, shared_.down.row_bytes);
  out.group_sums = nullptr;
  if (is_shared(tile.ffn)) {
    out.group_sums = h_tile_sums_ + (tile.first_slot - num_routed_slots_) * shared_.down.num_groups;
  }
  if (shape_of(tile.ffn).is_float()) return out;
  for (size_t t = 0; t < tile.count; ++t) {
    const QuantizedRow& row = h_rows_[tile.first_slot + t];
    out.d[t] = row.d;
    out.sum[t] = row.sum;
  }
  return out;
}

/// A block of gate (which = 0) or up (1).
Block LayerRun::gate_up_block(size_t ffn, size_t block, size_t which) const {
  const FfnShape& shape = shape_of(ffn);
  const size_t index = 2 * block + which;
  const size_t bytes = shape.gate_up.block.num_lines * kLineBytes;
  if (is_shared(ffn)) {
    const size_t scale_bytes = std::max<size_t>(1, shape.gate_up.num_groups) * kBlockRows * sizeof(uint16_t);
    const auto* scales = static_cast<const char*>(layer_.shared_gate_up_scale_);
    return {layer_.shared_gate_up_ + index * bytes, scales == nullptr ? nullptr : scales + index * scale_bytes, 0.0f};
  }
  float scale;
  std::memcpy(&scale, layer_.gate_up_scale_ + 2 * ffn + which, sizeof(scale));
  return {layer_.gate_up_packed_ + (ffn * 2 * intermediate_blocks_ + index) * bytes, nullptr, scale};
}

Block LayerRun::down_block(size_t ffn, size_t block) const {
  const FfnShape& shape = shape_of(ffn);
  const size_t bytes = shape.down.block.num_lines * kLineBytes;
  if (is_shared(ffn)) {
    const size_t scale_bytes = std::max<size_t>(1, shape.down.num_groups) * kBlockRows * sizeof(uint16_t);
    const auto* scales = static_cast<const char*>(layer_.shared_down_scale_);
    return {layer_.shared_down_ + block * bytes, scales == nullptr ? nullptr : scales + block * scale_bytes, 0.0f};
  }
  float scale;
  std::memcpy(&scale, layer_.down_scale_ + ffn, sizeof(scale));
  return {layer_.down_packed_ + (ffn * hidden_blocks_ + block) * bytes, nullptr, scale};
}

void LayerRun::gate_up_task(size_t task) {
  const size_t* next = std::upper_bound(first_gate_up_task_, first_gate_up_task_ + num_ffns_, task);
  const size_t ffn = static_cast<size_t>(next - first_gate_up_task_) - 1;
  const Range blocks = gate_up_tasks_[ffn].range(task - first_gate_up_task_[ffn]);
  const FfnShape& shape = shape_of(ffn);
  const FormatKernels& kernels = kernels_.formats[static_cast<size_t>(shape.format)];
  const Span span(trace_, Phase::kGateUp, traced_expert(ffn), traced_tokens(first_tile_[ffn], first_tile_[ffn + 1]),
                  stored_bytes(ffn, shape.gate_up, 2, blocks));

  for (size_t i = first_tile_[ffn]; i < first_tile_[ffn + 1]; ++i) {
    const TokenTile tile = x_tile(tiles_[i]);
    float* h = h_ + tiles_[i].first_slot * h_stride_;
    for (size_t block = blocks.begin; block < blocks.end; ++block) {
      kernels.gate_up_block(shape.gate_up.block, gate_up_block(ffn, block, 0), gate_up_block(ffn, block, 1), tile,
                            h + block * kBlockRows, h_stride_);
    }
  }
}

/// Some blocks of output rows for all experts, and so their sum as well, which needs no other task's result.
void LayerRun::down_task(size_t task) {
  const Range blocks = down_tasks_.range(task);
  for (size_t ffn = 0; ffn < num_ffns_; ++ffn) {
    if (first_tile_[ffn] == first_tile_[ffn + 1]) continue;
    const FfnShape& shape = shape_of(ffn);
    const FormatKernels& kernels = kernels_.formats[static_cast<size_t>(shape.format)];
    const Span span(trace_, Phase::kDown, traced_expert(ffn), traced_tokens(first_tile_[ffn], first_tile_[ffn + 1]),
                    stored_bytes(ffn, shape.down, 1, blocks));
    for (size_t i = first_tile_[ffn]; i < first_tile_[ffn + 1]; ++i) {
      const TokenTile tile = h_tile(tiles_[i]);
      for (size_t block = blocks.begin; block < blocks.end; ++block) {
        kernels.linear_block(shape.down.block, down_block(ffn, block), tile,
                             results_of_block(block) + tiles_[i].first_slot * kBlockRows);
      }
    }
  }
  const Span span(trace_, Phase::kCombine, kNoExpert, num_tokens_);
  for (size_t block = blocks.begin; block < blocks.end; ++block) combine_block(block);
}

float* LayerRun::results_of_block(size_t block) const { return results_ + block * plan_.slot_capacity * kBlockRows; }

void LayerRun::combine_block(size_t block) {
  const float* results = results_of_block(block);
  const size_t column = block * kBlockRows;
  const size_t columns = std::min(kBlockRows, hidden_size_ - column);
  for (size_t token = 0; token < num_tokens_; ++token) {
    float* y = y_ + token * hidden_size_ + column;
    if (x_rows_[token].finite) {
      const float* shared = layer_.has_shared_ ? results + shared_slots_[token] * kBlockRows : nullptr;
      kernels_.combine(results, slots_ + token * top_k_, gates_ + token * top_k_, top_k_, shared, y, columns);
    } else {
      for (size_t i = 0; i < columns; ++i) std::memcpy(y + i, &kCanonicalNan, sizeof(float));
    }
  }
}

}  // namespace mote
