#include "mote/ternary_moe.h"

#include <cstring>

#include "checks.h"
#include "dispatch.h"
#include "layer_run.h"
#include "layout.h"

namespace mote {
namespace {

constexpr const char* kSizes = "num_experts, hidden_size, intermediate_size and packing";
constexpr const char* kSharedSizes = "hidden_size, intermediate_size, shared_format and shared_group_size";

/// The formats of a layer, parsed.
struct Formats {
  WeightFormat packing = WeightFormat::kTwoBit;
  bool has_shared = false;
  WeightFormat shared = WeightFormat::kBf16;
};

Status parse_shared_format(const TernaryMoEConfig& config, Formats* formats) {
  const char* found = config.shared_format;
  constexpr const char* kKnown = "\"none\", \"bf16\", \"int8\" and \"int4\"";
  if (found == nullptr) return Status::error("shared_format is missing; this version of mote knows %s", kKnown);
  formats->has_shared = std::strcmp(found, "none") != 0;
  if (formats->has_shared && !find_full_format(found, &formats->shared)) {
    return Status::error("shared_format is \"%.64s\", but this version of mote knows only %s", found, kKnown);
  }
  return check_group_size("shared_group_size", config.shared_group_size, formats->shared, "shared_format", found);
}

Status check_config(const TernaryMoEConfig& config, Formats* formats) {
  const auto max_width = static_cast<int64_t>(kMaxWidth);
  Status status = check_range("num_experts", config.num_experts, 1, static_cast<int64_t>(kMaxExperts));
  if (status.is_ok()) status = check_range("top_k", config.top_k, 1, config.num_experts);
  if (status.is_ok()) status = check_range("hidden_size", config.hidden_size, 1, max_width);
  if (status.is_ok()) status = check_range("intermediate_size", config.intermediate_size, 1, max_width);
  if (status.is_ok()) status = check_word("activation", config.activation, "silu");
  if (status.is_ok()) status = parse_packing(config.packing, &formats->packing);
  if (status.is_ok()) status = check_layout_version(config.layout_version);
  if (status.is_ok()) status = parse_shared_format(config, formats);
  return status;
}

Status check_experts(const TernaryMoEConfig& config, WeightFormat packing, const TernaryMoEWeights& weights) {
  const auto experts = static_cast<size_t>(config.num_experts);
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const auto intermediate = static_cast<size_t>(config.intermediate_size);
  const size_t gate_up[] = {experts, num_blocks(intermediate), 2, num_lines(packing, hidden), kLineBytes};
  const size_t down[] = {experts, num_blocks(hidden), num_lines(packing, intermediate), kLineBytes};

  Status status = check_tensor(weights.router, {"router", kSizes, 2, {experts, hidden}}, sizeof(float));
  if (status.is_ok()) {
    status = check_tensor(weights.gate_up_packed,
                          {"gate_up_packed", kSizes, 5, {gate_up[0], gate_up[1], gate_up[2], gate_up[3], gate_up[4]}}, 1);
  }
  if (status.is_ok()) {
    status = check_tensor(weights.gate_up_scale, {"gate_up_scale", kSizes, 2, {experts, 2}}, sizeof(float));
  }
  if (status.is_ok()) {
    status = check_tensor(weights.down_packed, {"down_packed", kSizes, 4, {down[0], down[1], down[2], down[3]}}, 1);
  }
  if (status.is_ok()) status = check_tensor(weights.down_scale, {"down_scale", kSizes, 1, {experts}}, sizeof(float));

  if (status.is_ok()) status = check_values("gate_up_scale", weights.gate_up_scale, 2 * experts, false);
  if (status.is_ok()) status = check_values("down_scale", weights.down_scale, experts, false);
  if (status.is_ok()) status = check_values("router", weights.router, experts * hidden, true);
  return status;
}

Status check_no_shared(const TernaryMoEWeights& weights) {
  constexpr const char* kReason = "shared_format none";
  Status status = check_absent("shared_gate_up", weights.shared_gate_up, kReason);
  if (status.is_ok()) status = check_absent("shared_gate_up_scale", weights.shared_gate_up_scale, kReason);
  if (status.is_ok()) status = check_absent("shared_down", weights.shared_down, kReason);
  if (status.is_ok()) status = check_absent("shared_down_scale", weights.shared_down_scale, kReason);
  return status;
}

Status check_shared_scales(const TernaryMoEConfig& config, WeightFormat format, const TernaryMoEWeights& weights) {
  if (format == WeightFormat::kBf16) {
    const Status status = check_absent("shared_gate_up_scale", weights.shared_gate_up_scale, "shared_format bf16");
    return status.is_ok() ? check_absent("shared_down_scale", weights.shared_down_scale, "shared_format bf16") : status;
  }
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const auto intermediate = static_cast<size_t>(config.intermediate_size);
  const auto group = static_cast<size_t>(config.shared_group_size);
  const size_t hidden_groups = group == 0 ? 1 : ceil_div(hidden, group);
  const size_t intermediate_groups = group == 0 ? 1 : ceil_div(intermediate, group);
  Status status = check_tensor(weights.shared_gate_up_scale,
                               {"shared_gate_up_scale", kSharedSizes, 4,
                                {num_blocks(intermediate), 2, hidden_groups, kBlockRows}},
                               sizeof(uint16_t));
  if (status.is_ok()) {
    status = check_tensor(weights.shared_down_scale,
                          {"shared_down_scale", kSharedSizes, 3, {num_blocks(hidden), intermediate_groups, kBlockRows}},
                          sizeof(uint16_t));
  }
  if (!status.is_ok()) return status;
  status = check_bf16_scales("shared_gate_up_scale", weights.shared_gate_up_scale,
                             num_blocks(intermediate) * 2 * hidden_groups * kBlockRows);
  if (!status.is_ok()) return status;
  return check_bf16_scales("shared_down_scale", weights.shared_down_scale,
                           num_blocks(hidden) * intermediate_groups * kBlockRows);
}

Status check_shared(const TernaryMoEConfig& config, WeightFormat format, const TernaryMoEWeights& weights) {
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const auto intermediate = static_cast<size_t>(config.intermediate_size);
  Status status = check_tensor(
      weights.shared_gate_up,
      {"shared_gate_up", kSharedSizes, 4, {num_blocks(intermediate), 2, num_lines(format, hidden), kLineBytes}}, 1);
  if (status.is_ok()) {
    status = check_tensor(
        weights.shared_down,
        {"shared_down", kSharedSizes, 3, {num_blocks(hidden), num_lines(format, intermediate), kLineBytes}}, 1);
  }
  return status.is_ok() ? check_shared_scales(config, format, weights) : status;
}

}  // namespace

Status TernaryMoE::create(const TernaryMoEConfig& config, const TernaryMoEWeights& weights, TernaryMoE* layer) {
  Formats formats;
  Status status = check_config(config, &formats);
  if (status.is_ok()) status = check_experts(config, formats.packing, weights);
  if (status.is_ok()) {
    status = formats.has_shared ? check_shared(config, formats.shared, weights) : check_no_shared(weights);
  }
  if (!status.is_ok()) return status;

  layer->router_ = static_cast<const float*>(weights.router.data);
  layer->gate_up_packed_ = static_cast<const uint8_t*>(weights.gate_up_packed.data);
  layer->gate_up_scale_ = static_cast<const float*>(weights.gate_up_scale.data);
  layer->down_packed_ = static_cast<const uint8_t*>(weights.down_packed.data);
  layer->down_scale_ = static_cast<const float*>(weights.down_scale.data);
  layer->shared_gate_up_ = static_cast<const uint8_t*>(weights.shared_gate_up.data);
  layer->shared_gate_up_scale_ = weights.shared_gate_up_scale.data;
  layer->shared_down_ = static_cast<const uint8_t*>(weights.shared_down.data);
  layer->shared_down_scale_ = weights.shared_down_scale.data;
  layer->num_experts_ = config.num_experts;
  layer->top_k_ = config.top_k;
  layer->normalize_topk_ = config.normalize_topk;
  layer->hidden_size_ = config.hidden_size;
  layer->intermediate_size_ = config.intermediate_size;
  layer->packing_ = formats.packing;
  layer->has_shared_ = formats.has_shared;
  layer->shared_format_ = formats.shared;
  layer->shared_group_size_ = config.shared_group_size;
  return Status::ok();
}

bool TernaryMoE::scratch_size(size_t num_tokens, size_t* bytes) const {
  *bytes = 0;
  if (num_tokens == 0) return true;
  ScratchLayout plan;
  if (!LayerRun::plan_scratch(*this, num_tokens, &plan)) return false;
  *bytes = plan.total_bytes;
  return true;
}

bool TernaryMoE::compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const {
  ScratchLayout plan;
  if (num_tokens == 0) return true;
  if (!LayerRun::plan_scratch(*this, num_tokens, &plan)) return false;
  return LayerRun(*this, *active_isa().kernels, plan, scratch, threads).run(x, y, num_tokens);
}

}  // namespace mote
