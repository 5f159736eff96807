#include "mote/ternary_matmul.h"

#include <cstring>

#include "checks.h"
#include "dispatch.h"
#include "layout.h"
#include "matmul_run.h"

namespace mote {

Status TernaryMatMul::create(const TernaryMatMulConfig& config, const TernaryMatMulWeights& weights,
                             TernaryMatMul* layer) {
  constexpr const char* kFrom = "in_features, out_features and packing";
  const auto max_width = static_cast<int64_t>(kMaxWidth);
  WeightFormat packing = WeightFormat::kTwoBit;
  Status status = check_range("in_features", config.in_features, 1, max_width);
  if (status.is_ok()) status = check_range("out_features", config.out_features, 1, max_width);
  if (status.is_ok()) status = parse_packing(config.packing, &packing);
  if (status.is_ok()) status = check_layout_version(config.layout_version);
  if (!status.is_ok()) return status;

  const size_t blocks = num_blocks(static_cast<size_t>(config.out_features));
  const size_t lines = num_lines(packing, static_cast<size_t>(config.in_features));
  status = check_tensor(weights.packed, {"packed", kFrom, 3, {blocks, lines, kLineBytes}}, 1);
  if (status.is_ok()) status = check_tensor(weights.scale, {"scale", "the operator's shapes", 1, {1}}, sizeof(float));
  if (status.is_ok()) status = check_values("scale", weights.scale, 1, false);
  if (!status.is_ok()) return status;

  layer->packed_ = static_cast<const uint8_t*>(weights.packed.data);
  std::memcpy(&layer->scale_, weights.scale.data, sizeof(layer->scale_));
  layer->in_features_ = config.in_features;
  layer->out_features_ = config.out_features;
  layer->packing_ = packing;
  return Status::ok();
}

bool TernaryMatMul::scratch_size(size_t num_tokens, size_t* bytes) const {
  *bytes = 0;
  if (num_tokens == 0) return true;
  MatMulScratch plan;
  if (!MatMulRun::plan_scratch(*this, num_tokens, &plan)) return false;
  *bytes = plan.total_bytes;
  return true;
}

bool TernaryMatMul::compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const {
  MatMulScratch plan;
  if (num_tokens == 0) return true;
  if (!MatMulRun::plan_scratch(*this, num_tokens, &plan)) return false;
  return MatMulRun(*this, *active_isa().kernels, plan, scratch, threads).run(x, y, num_tokens);
}

}  // namespace mote
