// mote::ternary_matmul.out: translates a call's arguments; the core checks them.
#include "mote/ternary_matmul.h"

#include "operators.h"

namespace mote::et {
namespace {

/// Positions of the arguments, in the order of the schema (docs/operator.md).
enum Argument : size_t {
  kX,
  kPacked,
  kScale,
  kInFeatures,
  kOutFeatures,
  kPacking,
  kLayoutVersion,
  kOut,
  kNumArguments,
};
constexpr const char* kNames[] = {
    "x", "packed", "scale", "in_features", "out_features", "packing", "layout_version", "out",
};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumArguments);

Status create(const Arguments& arguments, AnyLayer* out) {
  Tensor packed, scale;
  RETURN_IF_ERROR(arguments.read_weight(kPacked, ScalarType::Byte, &packed));
  RETURN_IF_ERROR(arguments.read_weight(kScale, ScalarType::Float, &scale));

  TernaryMatMulConfig config;
  char packing[64];
  RETURN_IF_ERROR(arguments.read_integer(kInFeatures, &config.in_features));
  RETURN_IF_ERROR(arguments.read_integer(kOutFeatures, &config.out_features));
  RETURN_IF_ERROR(arguments.read_string(kPacking, packing));
  RETURN_IF_ERROR(arguments.read_integer(kLayoutVersion, &config.layout_version));
  config.packing = packing;

  TernaryMatMul layer;
  RETURN_IF_ERROR(TernaryMatMul::create(config, {packed.view(), scale.view()}, &layer));
  *out = AnyLayer(layer, layer.in_features(), layer.out_features());
  return Status::ok();
}

}  // namespace

constexpr Operator kTernaryMatMul = {"mote::ternary_matmul.out", kNames, kNumArguments, create, "in_features"};

}  // namespace mote::et
