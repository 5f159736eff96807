// mote::ternary_moe.out: translates a call's arguments; the core checks them.
#include "mote/ternary_moe.h"

#include "operators.h"

namespace mote::et {
namespace {

/// Positions of the arguments, in the order of the schema (docs/operator.md).
enum Argument : size_t {
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
  kNumExperts,
  kTopK,
  kNormalizeTopk,
  kIntermediateSize,
  kActivation,
  kPacking,
  kLayoutVersion,
  kSharedFormat,
  kSharedGroupSize,
  kOut,
  kNumArguments,
};
constexpr const char* kNames[] = {
    "x",
    "router",
    "gate_up_packed",
    "gate_up_scale",
    "down_packed",
    "down_scale",
    "shared_gate_up",
    "shared_gate_up_scale",
    "shared_down",
    "shared_down_scale",
    "num_experts",
    "top_k",
    "normalize_topk",
    "intermediate_size",
    "activation",
    "packing",
    "layout_version",
    "shared_format",
    "shared_group_size",
    "out",
};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumArguments);

Status create(const Arguments& arguments, AnyLayer* out) {
  Tensor router, gate_up_packed, gate_up_scale, down_packed, down_scale;
  Tensor shared_gate_up, shared_gate_up_scale, shared_down, shared_down_scale;
  RETURN_IF_ERROR(arguments.read_weight(kRouter, ScalarType::Float, &router));
  RETURN_IF_ERROR(arguments.read_weight(kGateUpPacked, ScalarType::Byte, &gate_up_packed));
  RETURN_IF_ERROR(arguments.read_weight(kGateUpScale, ScalarType::Float, &gate_up_scale));
  RETURN_IF_ERROR(arguments.read_weight(kDownPacked, ScalarType::Byte, &down_packed));
  RETURN_IF_ERROR(arguments.read_weight(kDownScale, ScalarType::Float, &down_scale));
  RETURN_IF_ERROR(arguments.read_optional_weight(kSharedGateUp, ScalarType::Byte, &shared_gate_up));
  RETURN_IF_ERROR(arguments.read_optional_weight(kSharedGateUpScale, ScalarType::BFloat16, &shared_gate_up_scale));
  RETURN_IF_ERROR(arguments.read_optional_weight(kSharedDown, ScalarType::Byte, &shared_down));
  RETURN_IF_ERROR(arguments.read_optional_weight(kSharedDownScale, ScalarType::BFloat16, &shared_down_scale));
  // The hidden size is no attribute; the router's columns say it, and a run holds x to it.
  if (router.rank != 2) {
    return Status::error("router has rank %zu, expected 2: [num_experts, hidden_size]", router.rank);
  }

  TernaryMoEConfig config;
  char activation[64];
  char packing[64];
  char shared_format[64];
  RETURN_IF_ERROR(arguments.read_integer(kNumExperts, &config.num_experts));
  RETURN_IF_ERROR(arguments.read_integer(kTopK, &config.top_k));
  RETURN_IF_ERROR(arguments.read_bool(kNormalizeTopk, &config.normalize_topk));
  RETURN_IF_ERROR(arguments.read_integer(kIntermediateSize, &config.intermediate_size));
  RETURN_IF_ERROR(arguments.read_string(kActivation, activation));
  RETURN_IF_ERROR(arguments.read_string(kPacking, packing));
  RETURN_IF_ERROR(arguments.read_integer(kLayoutVersion, &config.layout_version));
  RETURN_IF_ERROR(arguments.read_string(kSharedFormat, shared_format));
  RETURN_IF_ERROR(arguments.read_integer(kSharedGroupSize, &config.shared_group_size));
  config.activation = activation;
  config.packing = packing;
  config.shared_format = shared_format;
  config.hidden_size = router.shape[1];

  const TernaryMoEWeights weights = {
      router.view(),      gate_up_packed.view(), gate_up_scale.view(),        down_packed.view(),
      down_scale.view(),  shared_gate_up.view(), shared_gate_up_scale.view(), shared_down.view(),
      shared_down_scale.view(),
  };
  TernaryMoE layer;
  RETURN_IF_ERROR(TernaryMoE::create(config, weights, &layer));
  *out = AnyLayer(layer, layer.hidden_size(), layer.hidden_size());
  return Status::ok();
}

}  // namespace

constexpr Operator kTernaryMoE = {"mote::ternary_moe.out", kNames, kNumArguments, create,
                                  "the hidden size of the router"};

}  // namespace mote::et
