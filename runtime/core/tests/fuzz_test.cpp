// Layers with random damage: create() must refuse them, or compute() must run them and agree on every ISA. The value of
// this test is in the sanitizer builds.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <limits>

#include "layer_fixture.h"

namespace mote::test {
namespace {

constexpr int kDefaultRounds = 300;

int64_t hostile_integer(Rng& rng) {
  constexpr int64_t kValues[] = {0, -1, 1, 2, 3, 15, 16, 17, 64, 255, 256, 257, 1 << 20, (1 << 20) + 1,
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

void damage_config(TernaryMoEConfig& config, Rng& rng) {
  switch (rng() % 6) {
    case 0: config.num_experts = hostile_integer(rng); break;
    case 1: config.top_k = hostile_integer(rng); break;
    case 2: config.hidden_size = hostile_integer(rng); break;
    case 3: config.intermediate_size = hostile_integer(rng); break;
    case 4: config.layout_version = hostile_integer(rng); break;
    default: config.normalize_topk = !config.normalize_topk; break;
  }
}

void damage_shape(LayerTensors& tensors, Rng& rng) {
  std::vector<int64_t>* shapes[] = {&tensors.router_shape, &tensors.gate_up_packed_shape, &tensors.gate_up_scale_shape,
                                    &tensors.down_packed_shape, &tensors.down_scale_shape};
  std::vector<int64_t>& shape = *shapes[rng() % std::size(shapes)];
  switch (rng() % 3) {
    case 0: shape[rng() % shape.size()] = hostile_integer(rng); break;
    case 1: shape.push_back(hostile_integer(rng)); break;
    default: shape.pop_back(); break;
  }
}

void damage_values(LayerTensors& tensors, Rng& rng) {
  Unaligned* floats[] = {&tensors.router, &tensors.gate_up_scale, &tensors.down_scale};
  Unaligned& tensor = *floats[rng() % std::size(floats)];
  tensor.set_float(rng() % (tensor.size() / sizeof(float)), any_float(rng));
}

TEST(Fuzz, DamagedLayersAreRefusedOrComputed) {
  const char* rounds = std::getenv("MOTE_FUZZ_ROUNDS");
  Rng rng(20260101);
  for (int round = rounds != nullptr ? std::atoi(rounds) : kDefaultRounds; round > 0; --round) {
    const int64_t experts = 1 + static_cast<int64_t>(rng() % 9);
    const Dimensions d = {experts, 1 + static_cast<int64_t>(rng() % experts), 1 + static_cast<int64_t>(rng() % 70),
                          1 + static_cast<int64_t>(rng() % 70), rng() % 2 == 0};
    LayerTensors tensors(d, rng);
    for (uint64_t i = rng() % 3; i > 0; --i) {
      const uint64_t kind = rng() % 4;
      if (kind == 0) damage_config(tensors.config, rng);
      if (kind == 1) damage_shape(tensors, rng);
      if (kind >= 2) damage_values(tensors, rng);
    }
    TernaryMoE layer;
    const Status status = TernaryMoE::create(tensors.config, tensors.weights(), &layer);
    if (!status.is_ok()) {
      EXPECT_GT(std::strlen(status.message()), 10u);
      continue;
    }
    std::vector<float> x = random_values(rng() % 20 * static_cast<size_t>(layer.hidden_size()), rng);
    for (uint64_t i = rng() % 4; i > 0 && !x.empty(); --i) x[rng() % x.size()] = any_float(rng);
    const std::vector<float> expected = tensors.expected(x);
    for (const IsaEntry& isa : supported_isas()) {
      expect_same_bits(compute(layer, isa, x), expected, "round " + std::to_string(round) + " on " + isa.name);
    }
  }
}

}  // namespace
}  // namespace mote::test
