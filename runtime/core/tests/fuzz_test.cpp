// Layers with random damage: create() must refuse them, or compute() must run them and agree on every ISA. The value of
// this test is in the sanitizer builds.
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "layer_fixture.h"
#include "matmul_fixture.h"

namespace mote::test {
namespace {

constexpr int kDefaultRounds = 300;

int64_t hostile_integer(Rng& rng) {
  constexpr int64_t kValues[] = {0, -1, 1, 2, 3, 15, 16, 17, 64, 32, 128, 255, 256, 257, 1 << 17, (1 << 17) + 1,
                                 int64_t{1} << 32, int64_t{1} << 58, std::numeric_limits<int64_t>::min(),
                                 std::numeric_limits<int64_t>::max()};
  return kValues[rng() % std::size(kValues)];
}

float any_float(Rng& rng) {
  const uint32_t bits = static_cast<uint32_t>(rng());
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <size_t N>
auto& one_of(Rng& rng, const std::array<Tensor*, N>& tensors) {
  return *tensors[rng() % N];
}

void damage_config(TernaryMoEConfig& config, Rng& rng) {
  constexpr const char* kPackings[] = {"2bit", "1.6bit", "", nullptr};
  constexpr const char* kSharedFormats[] = {"none", "bf16", "int8", "int4", "int2", nullptr};
  constexpr int64_t kGroupSizes[] = {0, 16, 32, 64, 128, 256, 512, -32};
  switch (rng() % 9) {
    case 0: config.num_experts = hostile_integer(rng); break;
    case 1: config.top_k = hostile_integer(rng); break;
    case 2: config.hidden_size = hostile_integer(rng); break;
    case 3: config.intermediate_size = hostile_integer(rng); break;
    case 4: config.layout_version = hostile_integer(rng); break;
    case 5: config.packing = kPackings[rng() % std::size(kPackings)]; break;
    case 6: config.shared_format = kSharedFormats[rng() % std::size(kSharedFormats)]; break;
    case 7: config.shared_group_size = kGroupSizes[rng() % std::size(kGroupSizes)]; break;
    default: config.normalize_topk = !config.normalize_topk; break;
  }
}

void damage_shape(Tensor& tensor, Rng& rng) {
  std::vector<int64_t>& shape = tensor.shape;
  switch (shape.empty() ? 1 : rng() % 3) {
    case 0: shape[rng() % shape.size()] = hostile_integer(rng); break;
    case 1: shape.push_back(hostile_integer(rng)); break;
    default: shape.pop_back(); break;
  }
}

void damage_float(Tensor& tensor, Rng& rng) {
  tensor.set_float(rng() % (tensor.size() / sizeof(float)), any_float(rng));
}

void damage_scale(Tensor& tensor, Rng& rng) {
  if (tensor.is_absent()) return;
  tensor.set_bits16(rng() % (tensor.size() / sizeof(uint16_t)), static_cast<uint16_t>(rng()));
}

void damage(LayerTensors& t, Rng& rng) {
  switch (rng() % 5) {
    case 0: return damage_config(t.config, rng);
    case 1:
      return damage_shape(
          one_of<9>(rng, {&t.router, &t.gate_up_packed, &t.gate_up_scale, &t.down_packed, &t.down_scale,
                          &t.shared_gate_up, &t.shared_gate_up_scale, &t.shared_down, &t.shared_down_scale}),
          rng);
    case 2: return damage_scale(one_of<2>(rng, {&t.shared_gate_up_scale, &t.shared_down_scale}), rng);
    default: return damage_float(one_of<3>(rng, {&t.router, &t.gate_up_scale, &t.down_scale}), rng);
  }
}

void damage(MatMulTensors& t, Rng& rng) {
  switch (rng() % 5) {
    case 0: t.config.in_features = hostile_integer(rng); break;
    case 1: t.config.out_features = hostile_integer(rng); break;
    case 2: t.config.packing = rng() % 2 == 0 ? "2bit" : "1.6bit"; break;
    case 3: damage_shape(one_of<2>(rng, {&t.packed, &t.scale}), rng); break;
    default: damage_float(t.scale, rng); break;
  }
}

void damage(QuantizedMatMulTensors& t, Rng& rng) {
  constexpr const char* kFormats[] = {"bf16", "int8", "int4", "none", "", nullptr};
  constexpr int64_t kGroupSizes[] = {0, 16, 32, 64, 128, 256, 512, -32};
  switch (rng() % 8) {
    case 0: t.config.in_features = hostile_integer(rng); break;
    case 1: t.config.out_features = hostile_integer(rng); break;
    case 2: t.config.format = kFormats[rng() % std::size(kFormats)]; break;
    case 3: t.config.group_size = kGroupSizes[rng() % std::size(kGroupSizes)]; break;
    case 4: t.config.layout_version = hostile_integer(rng); break;
    case 5: damage_shape(one_of<3>(rng, {&t.weight, &t.scale, &t.bias}), rng); break;
    case 6:
      if (!t.bias.is_absent()) damage_float(t.bias, rng);
      break;
    default: damage_scale(t.scale, rng); break;
  }
}

int num_rounds() {
  const char* rounds = std::getenv("MOTE_FUZZ_ROUNDS");
  return rounds != nullptr ? std::atoi(rounds) : kDefaultRounds;
}

/// Up to 19 tokens, some values of which are anything.
std::vector<float> random_tokens(int64_t width, Rng& rng) {
  std::vector<float> x = random_values(rng() % 20 * static_cast<size_t>(width), rng);
  for (uint64_t i = rng() % 4; i > 0 && !x.empty(); --i) x[rng() % x.size()] = any_float(rng);
  return x;
}

template <class Layer, class Tensors>
void expect_refused_or_computed(const Tensors& tensors, int64_t (Layer::*width)() const, int round, Rng& rng) {
  Layer layer;
  const Status status = Layer::create(tensors.config, tensors.weights(), &layer);
  if (!status.is_ok()) {
    EXPECT_GT(std::strlen(status.message()), 10u);
    return;
  }
  const std::vector<float> x = random_tokens((layer.*width)(), rng);
  const std::vector<float> expected = tensors.expected(x);
  for (const IsaEntry& isa : supported_isas()) {
    const size_t tokens = x.size() / static_cast<size_t>((layer.*width)());
    expect_same_bits(compute_in_chunks(layer, isa, x, tokens), expected,
                     "round " + std::to_string(round) + " on " + isa.name);
  }
}

TEST(Fuzz, DamagedLayersAreRefusedOrComputed) {
  Rng rng(20260101);
  for (int round = num_rounds(); round > 0; --round) {
    const int64_t experts = 1 + static_cast<int64_t>(rng() % 9);
    const Dimensions d = {experts, 1 + static_cast<int64_t>(rng() % experts), 1 + static_cast<int64_t>(rng() % 70),
                          1 + static_cast<int64_t>(rng() % 70), rng() % 2 == 0};
    LayerTensors tensors(with_formats(d, kFormats[rng() % std::size(kFormats)]), rng);
    for (uint64_t i = rng() % 3; i > 0; --i) damage(tensors, rng);
    expect_refused_or_computed(tensors, &TernaryMoE::hidden_size, round, rng);
  }
}

TEST(Fuzz, DamagedMatMulsAreRefusedOrComputed) {
  Rng rng(20260102);
  for (int round = num_rounds(); round > 0; --round) {
    MatMulTensors tensors(1 + static_cast<int64_t>(rng() % 200), 1 + static_cast<int64_t>(rng() % 70),
                          rng() % 2 == 0 ? "2bit" : "1.6bit", rng);
    for (uint64_t i = rng() % 3; i > 0; --i) damage(tensors, rng);
    expect_refused_or_computed(tensors, &TernaryMatMul::in_features, round, rng);
  }
}

TEST(Fuzz, DamagedQuantizedMatMulsAreRefusedOrComputed) {
  constexpr std::pair<const char*, int64_t> kFormats[] = {
      {"bf16", 0}, {"int8", 0}, {"int4", 32}, {"int4", 64}, {"int4", 128}};
  Rng rng(20260103);
  for (int round = num_rounds(); round > 0; --round) {
    const auto [format, group_size] = kFormats[rng() % std::size(kFormats)];
    QuantizedMatMulTensors tensors(1 + static_cast<int64_t>(rng() % 200), 1 + static_cast<int64_t>(rng() % 70), format,
                                   group_size, rng() % 2 == 0, rng);
    for (uint64_t i = rng() % 3; i > 0; --i) damage(tensors, rng);
    expect_refused_or_computed(tensors, &QuantizedMatMul::in_features, round, rng);
  }
}

}  // namespace
}  // namespace mote::test
