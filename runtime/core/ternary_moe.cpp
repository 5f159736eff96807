#include "mote/ternary_moe.h"

#include <cmath>
#include <cstring>

#include "dispatch.h"
#include "layer_run.h"
#include "layout.h"

namespace mote {
namespace {

constexpr size_t kMaxRank = 5;

/// A tensor's expected shape, and its name for messages.
struct Expected {
  const char* name;
  size_t rank;
  size_t shape[kMaxRank];
};

Status check_range(const char* name, int64_t found, int64_t low, int64_t high) {
  if (found >= low && found <= high) return Status::ok();
  return Status::error("%s is %lld, but must be %lld to %lld", name, static_cast<long long>(found),
                       static_cast<long long>(low), static_cast<long long>(high));
}

Status check_word(const char* name, const char* found, const char* expected) {
  if (found == nullptr) return Status::error("%s is missing; this version of mote knows \"%s\"", name, expected);
  if (std::strcmp(found, expected) == 0) return Status::ok();
  return Status::error("%s is \"%.64s\", but this version of mote knows only \"%s\"", name, found, expected);
}

Status check_config(const TernaryMoEConfig& config) {
  const int64_t max_width = static_cast<int64_t>(kMaxWidth);
  Status status = check_range("num_experts", config.num_experts, 1, static_cast<int64_t>(kMaxExperts));
  if (status.is_ok()) status = check_range("top_k", config.top_k, 1, config.num_experts);
  if (status.is_ok()) status = check_range("hidden_size", config.hidden_size, 1, max_width);
  if (status.is_ok()) status = check_range("intermediate_size", config.intermediate_size, 1, max_width);
  if (status.is_ok()) status = check_word("activation", config.activation, "silu");
  if (status.is_ok()) status = check_word("packing", config.packing, "2bit");
  if (status.is_ok() && config.layout_version != kLayoutVersion) {
    status = Status::error("layout_version is %lld, but this version of mote reads %lld: export the model again",
                           static_cast<long long>(config.layout_version), static_cast<long long>(kLayoutVersion));
  }
  return status;
}

Status check_tensor(const TensorView& tensor, const Expected& expected, size_t element_bytes) {
  if (tensor.rank != expected.rank) {
    return Status::error("%s has rank %zu, but must have rank %zu", expected.name, tensor.rank, expected.rank);
  }
  if (tensor.shape == nullptr) return Status::error("%s has no shape; expected rank %zu", expected.name, expected.rank);
  size_t bytes = element_bytes;
  for (size_t i = 0; i < expected.rank; ++i) {
    if (tensor.shape[i] < 0 || static_cast<uint64_t>(tensor.shape[i]) != expected.shape[i]) {
      return Status::error("%s has size %lld in dimension %zu, but num_experts, hidden_size and intermediate_size "
                           "ask for %zu",
                           expected.name, static_cast<long long>(tensor.shape[i]), i, expected.shape[i]);
    }
    if (!checked_mul(bytes, expected.shape[i], &bytes) || bytes > PTRDIFF_MAX) {
      return Status::error("%s is larger than this machine's address space", expected.name);
    }
  }
  if (tensor.data == nullptr) return Status::error("%s has no data (a null pointer)", expected.name);
  return Status::ok();
}

Status check_shapes(const TernaryMoEConfig& config, const TernaryMoEWeights& weights) {
  const size_t experts = static_cast<size_t>(config.num_experts);
  const size_t hidden = static_cast<size_t>(config.hidden_size);
  const size_t hidden_blocks = num_blocks(hidden);
  const size_t intermediate_blocks = num_blocks(static_cast<size_t>(config.intermediate_size));

  Status status = check_tensor(weights.router, {"router", 2, {experts, hidden}}, sizeof(float));
  if (status.is_ok()) {
    status = check_tensor(weights.gate_up_packed,
                          {"gate_up_packed", 5, {experts, intermediate_blocks, 2, hidden_blocks, kLineBytes}}, 1);
  }
  if (status.is_ok()) {
    status = check_tensor(weights.gate_up_scale, {"gate_up_scale", 2, {experts, 2}}, sizeof(float));
  }
  if (status.is_ok()) {
    status = check_tensor(weights.down_packed,
                          {"down_packed", 4, {experts, hidden_blocks, intermediate_blocks, kLineBytes}}, 1);
  }
  if (status.is_ok()) status = check_tensor(weights.down_scale, {"down_scale", 1, {experts}}, sizeof(float));
  return status;
}

/// Reads values of a tensor that need not be aligned.
Status check_values(const char* name, const TensorView& tensor, size_t count, bool may_be_negative) {
  for (size_t i = 0; i < count; ++i) {
    float value;
    std::memcpy(&value, static_cast<const char*>(tensor.data) + i * sizeof(float), sizeof(value));
    if (std::isfinite(value) && (may_be_negative || value >= 0.0f)) continue;
    return Status::error("%s has the value %g at index %zu, but must be finite%s", name, static_cast<double>(value), i,
                         may_be_negative ? "" : " and not negative");
  }
  return Status::ok();
}

}  // namespace

Status TernaryMoE::create(const TernaryMoEConfig& config, const TernaryMoEWeights& weights, TernaryMoE* layer) {
  Status status = check_config(config);
  if (status.is_ok()) status = check_shapes(config, weights);
  if (!status.is_ok()) return status;

  const size_t experts = static_cast<size_t>(config.num_experts);
  const size_t hidden = static_cast<size_t>(config.hidden_size);
  status = check_values("gate_up_scale", weights.gate_up_scale, 2 * experts, false);
  if (status.is_ok()) status = check_values("down_scale", weights.down_scale, experts, false);
  if (status.is_ok()) status = check_values("router", weights.router, experts * hidden, true);
  if (!status.is_ok()) return status;

  layer->router_ = static_cast<const float*>(weights.router.data);
  layer->gate_up_packed_ = static_cast<const uint8_t*>(weights.gate_up_packed.data);
  layer->gate_up_scale_ = static_cast<const float*>(weights.gate_up_scale.data);
  layer->down_packed_ = static_cast<const uint8_t*>(weights.down_packed.data);
  layer->down_scale_ = static_cast<const float*>(weights.down_scale.data);
  layer->num_experts_ = config.num_experts;
  layer->top_k_ = config.top_k;
  layer->normalize_topk_ = config.normalize_topk;
  layer->hidden_size_ = config.hidden_size;
  layer->intermediate_size_ = config.intermediate_size;
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
