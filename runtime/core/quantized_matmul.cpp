#include "mote/quantized_matmul.h"

#include "checks.h"
#include "layout.h"
#include "matmul_run.h"

namespace mote {
namespace {

Status check_config(const QuantizedMatMulConfig& config, WeightFormat* format) {
  constexpr const char* kKnown = "\"bf16\", \"int8\" and \"int4\"";
  Status status = check_range("in_features", config.in_features, 1, static_cast<int64_t>(kMaxWidth));
  if (status.is_ok()) status = check_range("out_features", config.out_features, 1, static_cast<int64_t>(kMaxRows));
  if (status.is_ok()) status = check_layout_version(config.layout_version);
  if (!status.is_ok()) return status;
  if (config.format == nullptr) return Status::error("format is missing; this version of mote knows %s", kKnown);
  if (!find_full_format(config.format, format)) {
    return Status::error("format is \"%.64s\", but this version of mote knows only %s", config.format, kKnown);
  }
  return check_group_size("group_size", config.group_size, *format, "format", config.format);
}

Status check_scale(const QuantizedMatMulConfig& config, WeightFormat format, const TensorView& scale) {
  if (format == WeightFormat::kBf16) return check_absent("scale", scale, "format bf16");
  const size_t blocks = num_blocks(static_cast<size_t>(config.out_features));
  const auto group = static_cast<size_t>(config.group_size);
  const size_t groups = group == 0 ? 1 : ceil_div(static_cast<size_t>(config.in_features), group);
  const Status status = check_tensor(
      scale, {"scale", "in_features, out_features, format and group_size", 3, {blocks, groups, kBlockRows}},
      sizeof(uint16_t));
  return status.is_ok() ? check_bf16_scales("scale", scale, blocks * groups * kBlockRows) : status;
}

Status check_bias(const QuantizedMatMulConfig& config, const TensorView& bias) {
  if (bias.data == nullptr && bias.shape == nullptr) return Status::ok();
  const auto count = static_cast<size_t>(config.out_features);
  const Status status = check_tensor(bias, {"bias", "out_features", 1, {count}}, sizeof(float));
  return status.is_ok() ? check_values("bias", bias, count, true) : status;
}

}  // namespace

Status QuantizedMatMul::create(const QuantizedMatMulConfig& config, const QuantizedMatMulWeights& weights,
                               QuantizedMatMul* layer) {
  WeightFormat format = WeightFormat::kBf16;
  Status status = check_config(config, &format);
  if (!status.is_ok()) return status;

  const size_t blocks = num_blocks(static_cast<size_t>(config.out_features));
  const size_t lines = num_lines(format, static_cast<size_t>(config.in_features));
  status = check_tensor(weights.weight,
                        {"weight", "in_features, out_features and format", 3, {blocks, lines, kLineBytes}}, 1);
  if (status.is_ok()) status = check_scale(config, format, weights.scale);
  if (status.is_ok()) status = check_bias(config, weights.bias);
  if (!status.is_ok()) return status;

  layer->matrix_.lines = static_cast<const uint8_t*>(weights.weight.data);
  layer->matrix_.group_scales = weights.scale.data;
  layer->matrix_.bias = weights.bias.data;
  layer->matrix_.format = format;
  layer->matrix_.in_features = config.in_features;
  layer->matrix_.out_features = config.out_features;
  layer->matrix_.group_size = config.group_size;
  return Status::ok();
}

bool QuantizedMatMul::scratch_size(size_t num_tokens, size_t* bytes) const {
  return MatMulRun::scratch_size(matrix_, num_tokens, bytes);
}

bool QuantizedMatMul::compute(const float* x, float* y, size_t num_tokens, void* scratch,
                              const ThreadPool& threads) const {
  return MatMulRun::compute(matrix_, x, y, num_tokens, scratch, threads);
}

}  // namespace mote
