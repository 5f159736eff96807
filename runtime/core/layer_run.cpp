#include "layer_run.h"

#include <algorithm>
#include <cstring>

namespace mote {
namespace {

constexpr size_t kAlignment = 64;

/// Scratch memory that several tokens together may take; a single token takes what it needs. Enough that weights are
/// reused (some 300 tokens of a layer of 1536 by 8960), and little beside the weights of a model.
constexpr size_t kScratchBudget = size_t{16} << 20;

/// Rows of codes are this far from a multiple of their own size, so that rows of 4096 bytes do not share a cache set.
constexpr size_t kRowPadding = 64;

/// Least work worth a task: lines of weights times tiles of tokens, and values to quantize.
constexpr size_t kLinesPerTask = 2048;
constexpr size_t kValuesPerTask = 16384;

constexpr uint32_t kCanonicalNan = 0x7fc00000;

size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

/// Lays out buffers one after the other.
class Carver {
 public:
  size_t reserve(size_t count, size_t width, size_t element_bytes) {
    const size_t offset = bytes_;
    size_t elements = 0, size = 0;
    fits_ = fits_ && checked_mul(count, width, &elements) && checked_mul(elements, element_bytes, &size) &&
            checked_add(size, kAlignment - 1, &size) && checked_add(bytes_, size / kAlignment * kAlignment, &bytes_);
    return offset;
  }
  bool fits() const { return fits_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
  bool fits_ = true;
};

template <class T>
T* at(void* scratch, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
}

}  // namespace

bool LayerRun::lay_out_scratch(const TernaryMoE& layer, size_t token_capacity, ScratchLayout* plan) {
  const size_t hidden_blocks = num_blocks(static_cast<size_t>(layer.hidden_size_));
  const size_t intermediate_blocks = num_blocks(static_cast<size_t>(layer.intermediate_size_));
  plan->token_capacity = token_capacity;
  if (!checked_mul(token_capacity, static_cast<size_t>(layer.top_k_), &plan->slot_capacity)) return false;
  plan->x_stride = hidden_blocks * kLineInputs + kRowPadding;
  plan->h_stride = intermediate_blocks * kLineInputs;
  plan->h_code_stride = plan->h_stride + kRowPadding;

  Carver carver;
  plan->x_rows = carver.reserve(plan->token_capacity, 1, sizeof(QuantizedRow));
  plan->x_codes = carver.reserve(plan->token_capacity, plan->x_stride, sizeof(int8_t));
  plan->experts = carver.reserve(plan->slot_capacity, 1, sizeof(uint32_t));
  plan->gates = carver.reserve(plan->slot_capacity, 1, sizeof(float));
  plan->slots = carver.reserve(plan->slot_capacity, 1, sizeof(uint32_t));
  plan->token_of_slot = carver.reserve(plan->slot_capacity, 1, sizeof(uint32_t));
  plan->h = carver.reserve(plan->slot_capacity, plan->h_stride, sizeof(float));
  plan->h_rows = carver.reserve(plan->slot_capacity, 1, sizeof(QuantizedRow));
  plan->h_codes = carver.reserve(plan->slot_capacity, plan->h_code_stride, sizeof(int8_t));
  plan->results = carver.reserve(plan->slot_capacity, hidden_blocks * kBlockRows, sizeof(float));
  plan->total_bytes = carver.bytes();
  return carver.fits();
}

bool LayerRun::plan_scratch(const TernaryMoE& layer, size_t num_tokens, ScratchLayout* plan) {
  if (!lay_out_scratch(layer, 1, plan)) return false;
  const size_t most = std::max<size_t>(1, kScratchBudget / plan->total_bytes);
  const size_t chunks = std::max<size_t>(1, ceil_div(num_tokens, most));
  return lay_out_scratch(layer, std::max<size_t>(1, ceil_div(num_tokens, chunks)), plan);
}

LayerRun::LayerRun(const TernaryMoE& layer, const KernelTable& kernels, const ScratchLayout& plan, void* scratch,
                   const ThreadPool& threads)
    : layer_(layer),
      kernels_(kernels),
      plan_(plan),
      threads_(threads),
      hidden_size_(static_cast<size_t>(layer.hidden_size_)),
      intermediate_size_(static_cast<size_t>(layer.intermediate_size_)),
      top_k_(static_cast<size_t>(layer.top_k_)),
      hidden_lines_(num_blocks(hidden_size_)),
      intermediate_lines_(num_blocks(intermediate_size_)),
      x_rows_(at<QuantizedRow>(scratch, plan.x_rows)),
      x_codes_(at<int8_t>(scratch, plan.x_codes)),
      experts_(at<uint32_t>(scratch, plan.experts)),
      gates_(at<float>(scratch, plan.gates)),
      slots_(at<uint32_t>(scratch, plan.slots)),
      token_of_slot_(at<uint32_t>(scratch, plan.token_of_slot)),
      h_(at<float>(scratch, plan.h)),
      h_rows_(at<QuantizedRow>(scratch, plan.h_rows)),
      h_codes_(at<int8_t>(scratch, plan.h_codes)),
      results_(at<float>(scratch, plan.results)) {}

bool LayerRun::run(const float* x, float* y, size_t num_tokens) {
  for (size_t done = 0; done < num_tokens; done += plan_.token_capacity) {
    const size_t count = std::min(plan_.token_capacity, num_tokens - done);
    if (!run_chunk(x + done * hidden_size_, y + done * hidden_size_, count)) return false;
  }
  return true;
}

bool LayerRun::run_chunk(const float* x, float* y, size_t num_tokens) {
  x_ = x;
  y_ = y;
  num_tokens_ = num_tokens;

  tokens_per_task_ = ceil_div(kValuesPerTask, hidden_size_);
  if (!for_each<&LayerRun::prepare_task>(ceil_div(num_tokens_, tokens_per_task_))) return false;

  group_by_expert();
  plan_expert_tasks();
  if (!for_each<&LayerRun::gate_up_task>(first_gate_up_task_[layer_.num_experts_])) return false;

  slots_per_task_ = ceil_div(kValuesPerTask, intermediate_size_);
  if (!for_each<&LayerRun::quantize_h_task>(ceil_div(num_slots_, slots_per_task_))) return false;

  return for_each<&LayerRun::down_task>(ceil_div(hidden_lines_, down_blocks_per_task_));
}

/// Runs Step(0 .. count-1) on the thread pool, or here if that is not worth a wake-up. False if the pool failed.
template <void (LayerRun::*Step)(size_t)>
bool LayerRun::for_each(size_t count) {
  if (threads_.run == nullptr || count <= 1) {
    for (size_t i = 0; i < count; ++i) (this->*Step)(i);
    return true;
  }
  return threads_.run(
      threads_.pool, [](void* self, size_t i) { (static_cast<LayerRun*>(self)->*Step)(i); }, count, this);
}

void LayerRun::prepare_task(size_t task) {
  const size_t end = std::min(num_tokens_, (task + 1) * tokens_per_task_);
  for (size_t token = task * tokens_per_task_; token < end; ++token) {
    const float* x = x_ + token * hidden_size_;
    x_rows_[token] = kernels_.quantize_row(x, hidden_size_, x_codes_ + token * plan_.x_stride);
    if (x_rows_[token].finite) route_token(token);
  }
}

/// Fills experts_ and gates_ of the token. One whose logits are not finite is marked as not finite itself.
void LayerRun::route_token(size_t token) {
  const size_t num_experts = static_cast<size_t>(layer_.num_experts_);
  alignas(kAlignment) float logits[kMaxExperts];
  alignas(kAlignment) float probabilities[kMaxExperts];
  if (!kernels_.route(x_ + token * hidden_size_, layer_.router_, num_experts, hidden_size_, logits, probabilities)) {
    x_rows_[token].finite = false;
    return;
  }

  uint32_t* experts = experts_ + token * top_k_;
  float* gates = gates_ + token * top_k_;
  bool taken[kMaxExperts] = {};
  float sum = 0.0f;
  for (size_t rank = 0; rank < top_k_; ++rank) {
    size_t best = num_experts;
    for (size_t i = 0; i < num_experts; ++i) {
      if (!taken[i] && (best == num_experts || logits[i] > logits[best])) best = i;
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

/// A counting sort of (token, rank) by expert. Tokens that are not finite get no slot.
void LayerRun::group_by_expert() {
  const size_t num_experts = static_cast<size_t>(layer_.num_experts_);
  std::fill_n(first_slot_, num_experts + 1, size_t{0});
  for (size_t token = 0; token < num_tokens_; ++token) {
    if (!x_rows_[token].finite) continue;
    for (size_t rank = 0; rank < top_k_; ++rank) ++first_slot_[experts_[token * top_k_ + rank] + 1];
  }
  for (size_t e = 0; e < num_experts; ++e) first_slot_[e + 1] += first_slot_[e];
  num_slots_ = first_slot_[num_experts];

  size_t next[kMaxExperts];
  std::copy_n(first_slot_, num_experts, next);
  for (size_t token = 0; token < num_tokens_; ++token) {
    if (!x_rows_[token].finite) continue;
    for (size_t rank = 0; rank < top_k_; ++rank) {
      const size_t slot = next[experts_[token * top_k_ + rank]]++;
      slots_[token * top_k_ + rank] = static_cast<uint32_t>(slot);
      token_of_slot_[slot] = static_cast<uint32_t>(token);
    }
  }
}

/// Cuts blocks of rows into tasks of about kLinesPerTask: for gate and up those of one expert, by the number of its
/// tokens; for down those of all experts together.
void LayerRun::plan_expert_tasks() {
  size_t all_tiles = 0;
  first_gate_up_task_[0] = 0;
  for (size_t e = 0; e < static_cast<size_t>(layer_.num_experts_); ++e) {
    const size_t tiles = ceil_div(first_slot_[e + 1] - first_slot_[e], kernels_.tile_tokens);
    gate_up_blocks_per_task_[e] = tiles == 0 ? 1 : ceil_div(kLinesPerTask, 2 * hidden_lines_ * tiles);
    const size_t tasks = tiles == 0 ? 0 : ceil_div(intermediate_lines_, gate_up_blocks_per_task_[e]);
    first_gate_up_task_[e + 1] = first_gate_up_task_[e] + tasks;
    all_tiles += tiles;
  }
  down_blocks_per_task_ = ceil_div(kLinesPerTask, intermediate_lines_ * std::max<size_t>(1, all_tiles));
}

/// The tokens of an expert in tiles of nearly equal size: 9 are better taken as 5 and 4 than as 8 and 1.
LayerRun::Range LayerRun::next_tile(size_t begin, size_t end) const {
  const size_t tiles_left = ceil_div(end - begin, kernels_.tile_tokens);
  return {begin, begin + ceil_div(end - begin, tiles_left)};
}

void LayerRun::gate_up_task(size_t task) {
  const size_t* next = std::upper_bound(first_gate_up_task_, first_gate_up_task_ + layer_.num_experts_, task);
  const size_t expert = static_cast<size_t>(next - first_gate_up_task_) - 1;
  const size_t blocks_per_task = gate_up_blocks_per_task_[expert];
  const size_t first_block = (task - first_gate_up_task_[expert]) * blocks_per_task;
  const size_t end_block = std::min(intermediate_lines_, first_block + blocks_per_task);

  const size_t block_bytes = 2 * hidden_lines_ * kLineBytes;
  const uint8_t* lines = layer_.gate_up_packed_ + expert * intermediate_lines_ * block_bytes;
  float scale[2];
  std::memcpy(scale, layer_.gate_up_scale_ + 2 * expert, sizeof(scale));

  for (size_t begin = first_slot_[expert]; begin < first_slot_[expert + 1];) {
    const Range slots = next_tile(begin, first_slot_[expert + 1]);
    TokenTile tile;
    tile.count = slots.end - slots.begin;
    for (size_t i = 0; i < tile.count; ++i) {
      const size_t token = token_of_slot_[slots.begin + i];
      set_row(x_rows_[token], x_codes_ + token * plan_.x_stride, i, &tile);
    }
    for (size_t block = first_block; block < end_block; ++block) {
      float* h = h_ + slots.begin * plan_.h_stride + block * kBlockRows;
      kernels_.gate_up_block(lines + block * block_bytes, hidden_lines_, tile, scale, h, plan_.h_stride);
    }
    begin = slots.end;
  }
}

void LayerRun::quantize_h_task(size_t task) {
  const size_t end = std::min(num_slots_, (task + 1) * slots_per_task_);
  for (size_t slot = task * slots_per_task_; slot < end; ++slot) {
    h_rows_[slot] = kernels_.quantize_row(h_ + slot * plan_.h_stride, intermediate_size_,
                                          h_codes_ + slot * plan_.h_code_stride);
  }
}

/// Some blocks of output rows for all experts, and so their sum as well, which needs no other task's result.
void LayerRun::down_task(size_t task) {
  const size_t first_block = task * down_blocks_per_task_;
  const size_t end_block = std::min(hidden_lines_, first_block + down_blocks_per_task_);
  for (size_t expert = 0; expert < static_cast<size_t>(layer_.num_experts_); ++expert) {
    down_blocks(expert, first_block, end_block);
  }
  for (size_t block = first_block; block < end_block; ++block) combine_block(block);
}

void LayerRun::down_blocks(size_t expert, size_t first_block, size_t end_block) {
  const size_t block_bytes = intermediate_lines_ * kLineBytes;
  const uint8_t* lines = layer_.down_packed_ + expert * hidden_lines_ * block_bytes;
  float scale;
  std::memcpy(&scale, layer_.down_scale_ + expert, sizeof(scale));

  for (size_t begin = first_slot_[expert]; begin < first_slot_[expert + 1];) {
    const Range slots = next_tile(begin, first_slot_[expert + 1]);
    TokenTile tile;
    tile.count = slots.end - slots.begin;
    for (size_t i = 0; i < tile.count; ++i) {
      const size_t slot = slots.begin + i;
      set_row(h_rows_[slot], h_codes_ + slot * plan_.h_code_stride, i, &tile);
    }
    for (size_t block = first_block; block < end_block; ++block) {
      float* results = results_of_block(block) + slots.begin * kBlockRows;
      kernels_.down_block(lines + block * block_bytes, intermediate_lines_, tile, scale, results);
    }
    begin = slots.end;
  }
}

float* LayerRun::results_of_block(size_t block) const { return results_ + block * plan_.slot_capacity * kBlockRows; }

void LayerRun::set_row(const QuantizedRow& row, const int8_t* codes, size_t i, TokenTile* tile) {
  tile->q[i] = codes;
  tile->d[i] = row.d;
  tile->sum[i] = row.sum;
}

void LayerRun::combine_block(size_t block) {
  const float* results = results_of_block(block);
  const size_t column = block * kBlockRows;
  const size_t columns = std::min(kBlockRows, hidden_size_ - column);
  for (size_t token = 0; token < num_tokens_; ++token) {
    float* y = y_ + token * hidden_size_ + column;
    if (x_rows_[token].finite) {
      kernels_.combine(results, slots_ + token * top_k_, gates_ + token * top_k_, top_k_, y, columns);
    } else {
      for (size_t i = 0; i < columns; ++i) std::memcpy(y + i, &kCanonicalNan, sizeof(float));
    }
  }
}

}  // namespace mote
