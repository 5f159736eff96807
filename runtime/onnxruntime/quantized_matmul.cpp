// mote::QuantizedMatMul: translates a node's inputs and attributes; the core checks them.
#include "mote/quantized_matmul.h"

#include "operators.h"

namespace mote::ort {
namespace {

/// Positions of the inputs, in the order of docs/operator.md.
enum InputIndex : size_t { kX, kWeight, kScale, kBias, kNumInputs };
constexpr Input kInputs[] = {
    {"x", kFloat},
    {"weight", kUint8},
    {"scale", kBfloat16, true},
    {"bias", kFloat, true},
};
static_assert(sizeof(kInputs) / sizeof(kInputs[0]) == kNumInputs && kNumInputs <= kMaxInputs);

OrtStatus* create(const Definition& definition, AnyLayer* out) {
  QuantizedMatMulConfig config;
  char format[64];
  RETURN_IF_ERROR(definition.read_integer("layout_version", &config.layout_version));
  RETURN_IF_ERROR(definition.read_integer("in_features", &config.in_features));
  RETURN_IF_ERROR(definition.read_integer("out_features", &config.out_features));
  RETURN_IF_ERROR(definition.read_string("format", format));
  RETURN_IF_ERROR(definition.read_integer("group_size", &config.group_size));
  config.format = format;

  QuantizedMatMul layer;
  const Status status = QuantizedMatMul::create(
      config, {definition.weight(kWeight).view(), definition.weight(kScale).view(), definition.weight(kBias).view()},
      &layer);
  if (!status.is_ok()) return definition.node().error("%s", status.message());
  *out = AnyLayer(layer, layer.in_features(), layer.out_features());
  return nullptr;
}

}  // namespace

constexpr Operator kQuantizedMatMul = {"QuantizedMatMul", kInputs, kNumInputs, create, "in_features", "out_features"};

}  // namespace mote::ort
