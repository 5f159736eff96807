// mote::TernaryMatMul: translates a node's inputs and attributes; the core checks them.
#include "mote/ternary_matmul.h"

#include "operators.h"

namespace mote::ort {
namespace {

/// Positions of the inputs, in the order of docs/operator.md.
enum InputIndex : size_t { kX, kPacked, kScale, kNumInputs };
constexpr Input kInputs[] = {{"x", kFloat}, {"packed", kUint8}, {"scale", kFloat}};
static_assert(sizeof(kInputs) / sizeof(kInputs[0]) == kNumInputs && kNumInputs <= kMaxInputs);

OrtStatus* create(const Definition& definition, AnyLayer* out) {
  TernaryMatMulConfig config;
  char packing[64];
  RETURN_IF_ERROR(definition.read_integer("layout_version", &config.layout_version));
  RETURN_IF_ERROR(definition.read_integer("in_features", &config.in_features));
  RETURN_IF_ERROR(definition.read_integer("out_features", &config.out_features));
  RETURN_IF_ERROR(definition.read_string("packing", packing));
  config.packing = packing;

  TernaryMatMul layer;
  const Status status = TernaryMatMul::create(
      config, {definition.weight(kPacked).view(), definition.weight(kScale).view()}, &layer);
  if (!status.is_ok()) return definition.node().error("%s", status.message());
  *out = AnyLayer(layer, layer.in_features(), layer.out_features());
  return nullptr;
}

}  // namespace

constexpr Operator kTernaryMatMul = {"TernaryMatMul", kInputs, kNumInputs, create, "in_features", "out_features"};

}  // namespace mote::ort
