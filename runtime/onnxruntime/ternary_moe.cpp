// mote::TernaryMoE: translates a node's inputs and attributes; the core checks them.
#include "mote/ternary_moe.h"

#include "operators.h"

namespace mote::ort {
namespace {

/// Positions of the inputs, in the order of docs/operator.md.
enum InputIndex : size_t {
  kX,
  kRouter,
  kGateUpPacked,
  kGateUpScale,
  kDownPacked,
  kDownScale,
  kSharedGateUp,
  kSharedGateUpScale,
  kSharedDown,
  kSharedDownScale,
  kNumInputs,
};
constexpr Input kInputs[] = {
    {"x", kFloat},
    {"router", kFloat},
    {"gate_up_packed", kUint8},
    {"gate_up_scale", kFloat},
    {"down_packed", kUint8},
    {"down_scale", kFloat},
    {"shared_gate_up", kUint8, true},
    {"shared_gate_up_scale", kBfloat16, true},
    {"shared_down", kUint8, true},
    {"shared_down_scale", kBfloat16, true},
};
static_assert(sizeof(kInputs) / sizeof(kInputs[0]) == kNumInputs && kNumInputs <= kMaxInputs);

OrtStatus* create(const Definition& definition, AnyLayer* out) {
  TernaryMoEConfig config;
  int64_t normalize_topk = 0;
  char activation[64];
  char packing[64];
  char shared_format[64];
  RETURN_IF_ERROR(definition.read_integer("layout_version", &config.layout_version));
  RETURN_IF_ERROR(definition.read_integer("num_experts", &config.num_experts));
  RETURN_IF_ERROR(definition.read_integer("top_k", &config.top_k));
  RETURN_IF_ERROR(definition.read_integer("normalize_topk", &normalize_topk));
  RETURN_IF_ERROR(definition.read_integer("intermediate_size", &config.intermediate_size));
  RETURN_IF_ERROR(definition.read_string("activation", activation));
  RETURN_IF_ERROR(definition.read_string("packing", packing));
  RETURN_IF_ERROR(definition.read_string("shared_format", shared_format));
  RETURN_IF_ERROR(definition.read_integer("shared_group_size", &config.shared_group_size));
  if (normalize_topk != 0 && normalize_topk != 1) {
    return definition.node().error("normalize_topk is %lld, but must be 0 or 1",
                                   static_cast<long long>(normalize_topk));
  }
  config.normalize_topk = normalize_topk == 1;
  config.activation = activation;
  config.packing = packing;
  config.shared_format = shared_format;
  // The hidden size is no attribute; the router's columns say it, and a run holds x to it.
  const Tensor& router = definition.weight(kRouter);
  if (router.rank != 2) {
    return definition.node().error("router has rank %zu, expected 2: [num_experts, hidden_size]", router.rank);
  }
  config.hidden_size = router.shape[1];

  const TernaryMoEWeights weights = {
      router.view(),
      definition.weight(kGateUpPacked).view(),
      definition.weight(kGateUpScale).view(),
      definition.weight(kDownPacked).view(),
      definition.weight(kDownScale).view(),
      definition.weight(kSharedGateUp).view(),
      definition.weight(kSharedGateUpScale).view(),
      definition.weight(kSharedDown).view(),
      definition.weight(kSharedDownScale).view(),
  };
  TernaryMoE layer;
  const Status status = TernaryMoE::create(config, weights, &layer);
  if (!status.is_ok()) return definition.node().error("%s", status.message());
  *out = AnyLayer(layer, layer.hidden_size(), layer.hidden_size());
  return nullptr;
}

}  // namespace

constexpr Operator kTernaryMoE = {"TernaryMoE", kInputs, kNumInputs, create, "the hidden size of the router", nullptr};

}  // namespace mote::ort
