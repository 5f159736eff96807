// mote::quantized_matmul.out: translates a call's arguments; the core checks them.
#include "mote/quantized_matmul.h"

#include "operators.h"

namespace mote::et {
namespace {

/// Positions of the arguments, in the order of the schema (docs/operator.md).
enum Argument : size_t {
  kX,
  kWeight,
  kScale,
  kBias,
  kInFeatures,
  kOutFeatures,
  kFormat,
  kGroupSize,
  kLayoutVersion,
  kOut,
  kNumArguments,
};
constexpr const char* kNames[] = {
    "x", "weight", "scale", "bias", "in_features", "out_features", "format", "group_size", "layout_version", "out",
};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumArguments);

Status create(const Arguments& arguments, AnyLayer* out) {
  Tensor weight, scale, bias;
  RETURN_IF_ERROR(arguments.read_weight(kWeight, ScalarType::Byte, &weight));
  RETURN_IF_ERROR(arguments.read_optional_weight(kScale, ScalarType::BFloat16, &scale));
  RETURN_IF_ERROR(arguments.read_optional_weight(kBias, ScalarType::Float, &bias));

  QuantizedMatMulConfig config;
  char format[64];
  RETURN_IF_ERROR(arguments.read_integer(kInFeatures, &config.in_features));
  RETURN_IF_ERROR(arguments.read_integer(kOutFeatures, &config.out_features));
  RETURN_IF_ERROR(arguments.read_string(kFormat, format));
  RETURN_IF_ERROR(arguments.read_integer(kGroupSize, &config.group_size));
  RETURN_IF_ERROR(arguments.read_integer(kLayoutVersion, &config.layout_version));
  config.format = format;

  QuantizedMatMul layer;
  RETURN_IF_ERROR(QuantizedMatMul::create(config, {weight.view(), scale.view(), bias.view()}, &layer));
  *out = AnyLayer(layer, layer.in_features(), layer.out_features());
  return Status::ok();
}

}  // namespace

constexpr Operator kQuantizedMatMul = {"mote::quantized_matmul.out", kNames, kNumArguments, create, "in_features"};

}  // namespace mote::et
