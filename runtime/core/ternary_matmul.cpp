#include "mote/ternary_matmul.h"

#include <cstring>

#include "checks.h"
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

  layer->matrix_.lines = static_cast<const uint8_t*>(weights.packed.data);
  std::memcpy(&layer->matrix_.scale, weights.scale.data, sizeof(layer->matrix_.scale));
  layer->matrix_.format = packing;
  layer->matrix_.in_features = config.in_features;
  layer->matrix_.out_features = config.out_features;
  return Status::ok();
}

bool TernaryMatMul::scratch_size(size_t num_tokens, size_t* bytes) const {
  return MatMulRun::scratch_size(matrix_, num_tokens, bytes);
}

bool TernaryMatMul::compute(const float* x, float* y, size_t num_tokens, void* scratch, const ThreadPool& threads) const {
  return MatMulRun::compute(matrix_, x, y, num_tokens, scratch, threads);
}

}  // namespace mote
