#include "layer_fixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <cstdlib>
#include <memory>

#include "layer_run.h"
#include "reference.h"

namespace mote::test {
namespace {

int64_t ceil16(int64_t n) { return (n + 15) / 16; }

Unaligned random_bytes(const std::vector<int64_t>& shape, Rng& rng) {
  size_t size = 1;
  for (int64_t n : shape) size *= static_cast<size_t>(n);
  Unaligned out(size, 1);
  for (size_t i = 0; i < size; ++i) out.data()[i] = static_cast<uint8_t>(rng());
  return out;
}

Unaligned random_floats(size_t count, float low, float high, Rng& rng) {
  Unaligned out(count * sizeof(float), sizeof(float));
  std::uniform_real_distribution<float> uniform(low, high);
  for (size_t i = 0; i < count; ++i) out.set_float(i, uniform(rng));
  return out;
}

}  // namespace

std::string to_string(const Dimensions& d) {
  return "E=" + std::to_string(d.num_experts) + " k=" + std::to_string(d.top_k) + " H=" +
         std::to_string(d.hidden_size) + " I=" + std::to_string(d.intermediate_size) +
         (d.normalize_topk ? " normalized" : "");
}

void Unaligned::set_float(size_t index, float value) {
  std::memcpy(data() + index * sizeof(value), &value, sizeof(value));
}

float Unaligned::get_float(size_t index) const {
  float value;
  std::memcpy(&value, data() + index * sizeof(value), sizeof(value));
  return value;
}

LayerTensors::LayerTensors(const Dimensions& d, Rng& rng) {
  const int64_t E = d.num_experts, H = d.hidden_size, I = d.intermediate_size;
  config.num_experts = E;
  config.top_k = d.top_k;
  config.normalize_topk = d.normalize_topk;
  config.hidden_size = H;
  config.intermediate_size = I;
  config.activation = "silu";
  config.packing = "2bit";
  config.layout_version = 1;

  router_shape = {E, H};
  gate_up_packed_shape = {E, ceil16(I), 2, ceil16(H), 64};
  gate_up_scale_shape = {E, 2};
  down_packed_shape = {E, ceil16(H), ceil16(I), 64};
  down_scale_shape = {E};
  router = random_floats(static_cast<size_t>(E * H), -0.1f, 0.1f, rng);
  gate_up_packed = random_bytes(gate_up_packed_shape, rng);
  gate_up_scale = random_floats(static_cast<size_t>(2 * E), 0.0f, 0.1f, rng);
  down_packed = random_bytes(down_packed_shape, rng);
  down_scale = random_floats(static_cast<size_t>(E), 0.0f, 0.1f, rng);
}

TernaryMoEWeights LayerTensors::weights() const {
  auto view = [](const Unaligned& data, const std::vector<int64_t>& shape) {
    return TensorView{data.data(), shape.data(), shape.size()};
  };
  return {view(router, router_shape), view(gate_up_packed, gate_up_packed_shape),
          view(gate_up_scale, gate_up_scale_shape), view(down_packed, down_packed_shape),
          view(down_scale, down_scale_shape)};
}

TernaryMoE LayerTensors::create() const {
  TernaryMoE layer;
  const Status status = TernaryMoE::create(config, weights(), &layer);
  EXPECT_TRUE(status.is_ok()) << status.message();
  return layer;
}

std::vector<float> LayerTensors::expected(const std::vector<float>& x) const {
  ReferenceLayer layer;
  layer.num_experts = static_cast<size_t>(config.num_experts);
  layer.top_k = static_cast<size_t>(config.top_k);
  layer.hidden_size = static_cast<size_t>(config.hidden_size);
  layer.intermediate_size = static_cast<size_t>(config.intermediate_size);
  layer.normalize_topk = config.normalize_topk;
  layer.router = router.data();
  layer.gate_up_packed = gate_up_packed.data();
  layer.gate_up_scale = gate_up_scale.data();
  layer.down_packed = down_packed.data();
  layer.down_scale = down_scale.data();
  std::vector<float> y(x.size());
  reference_compute(layer, x.data(), y.data(), x.size() / layer.hidden_size);
  return y;
}

std::vector<float> random_values(size_t count, Rng& rng) {
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<float> out(count);
  for (float& value : out) {
    const uint64_t kind = rng() % 64;
    value = uniform(rng);
    if (kind == 0) value = 0.0f;
    if (kind == 1) value = std::ldexp(value, -140);
    if (kind == 2) value = std::ldexp(value, -20);
  }
  return out;
}

std::vector<IsaEntry> supported_isas() {
  size_t count = 0;
  const IsaEntry* entries = isa_entries(&count);
  std::vector<IsaEntry> out;
  for (size_t i = 0; i < count; ++i) {
    if (entries[i].is_supported()) out.push_back(entries[i]);
  }
  return out;
}

std::vector<float> compute(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                           const ThreadPool& threads) {
  return compute_in_chunks(layer, isa, x, x.size() / static_cast<size_t>(layer.hidden_size()), threads);
}

std::vector<float> compute_in_chunks(const TernaryMoE& layer, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads) {
  const size_t tokens = x.size() / static_cast<size_t>(layer.hidden_size());
  std::vector<float> y(x.size());
  if (tokens == 0) return y;
  ScratchLayout plan;
  if (!LayerRun::plan_scratch(layer, tokens_per_chunk, &plan)) {
    ADD_FAILURE() << "scratch does not fit";
    return y;
  }
  std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, plan.total_bytes), &std::free);
  std::memset(scratch.get(), 0xa5, plan.total_bytes);
  EXPECT_TRUE(LayerRun(layer, *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens));
  return y;
}

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    uint32_t a, b;
    std::memcpy(&a, &actual[i], sizeof(a));
    std::memcpy(&b, &expected[i], sizeof(b));
    ASSERT_EQ(a, b) << what << ": value " << i << " is " << actual[i] << ", expected " << expected[i];
  }
}

}  // namespace mote::test
