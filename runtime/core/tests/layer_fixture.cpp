#include "layer_fixture.h"

#include <gtest/gtest.h>

#include "layer_run.h"
#include "reference.h"

namespace mote::test {

std::string to_string(const Dimensions& d) {
  return "E=" + std::to_string(d.num_experts) + " k=" + std::to_string(d.top_k) + " H=" +
         std::to_string(d.hidden_size) + " I=" + std::to_string(d.intermediate_size) +
         (d.normalize_topk ? " normalized " : " ") + d.packing + " " + d.shared_format + " " +
         std::to_string(d.shared_group_size);
}

Dimensions with_formats(Dimensions d, const Formats& formats) {
  d.packing = formats.packing;
  d.shared_format = formats.shared_format;
  d.shared_group_size = formats.shared_group_size;
  return d;
}

LayerTensors::LayerTensors(const Dimensions& d, Rng& rng) : dimensions(d) {
  const int64_t E = d.num_experts, H = d.hidden_size, I = d.intermediate_size, C = line_inputs_of(d.packing);
  config.num_experts = E;
  config.top_k = d.top_k;
  config.normalize_topk = d.normalize_topk;
  config.hidden_size = H;
  config.intermediate_size = I;
  config.activation = "silu";
  config.packing = dimensions.packing.c_str();
  config.layout_version = 1;
  config.shared_format = dimensions.shared_format.c_str();
  config.shared_group_size = d.shared_group_size;

  router = Tensor::random_floats({E, H}, -0.1f, 0.1f, rng);
  gate_up_packed = Tensor::random_bytes({E, ceil_div_of(I, 16), 2, ceil_div_of(H, C), 64}, rng);
  gate_up_scale = Tensor::random_floats({E, 2}, 0.0f, 0.1f, rng);
  down_packed = Tensor::random_bytes({E, ceil_div_of(H, 16), ceil_div_of(I, C), 64}, rng);
  down_scale = Tensor::random_floats({E}, 0.0f, 0.1f, rng);
  if (d.shared_format != "none") make_shared(rng);
}

void LayerTensors::make_shared(Rng& rng) {
  const int64_t H = dimensions.hidden_size, I = dimensions.intermediate_size;
  const int64_t g = dimensions.shared_group_size, C = line_inputs_of(dimensions.shared_format);
  const std::vector<int64_t> gate_up_shape = {ceil_div_of(I, 16), 2, ceil_div_of(H, C), 64};
  const std::vector<int64_t> down_shape = {ceil_div_of(H, 16), ceil_div_of(I, C), 64};
  if (dimensions.shared_format == "bf16") {
    shared_gate_up = Tensor::random_bf16_lines(gate_up_shape, rng);
    shared_down = Tensor::random_bf16_lines(down_shape, rng);
    return;
  }
  shared_gate_up = Tensor::random_bytes(gate_up_shape, rng);
  shared_down = Tensor::random_bytes(down_shape, rng);
  const float high = dimensions.shared_format == "int8" ? 1e-3f : 1e-2f;
  const int64_t hidden_groups = g == 0 ? 1 : ceil_div_of(H, g), intermediate_groups = g == 0 ? 1 : ceil_div_of(I, g);
  shared_gate_up_scale = Tensor::random_bf16({ceil_div_of(I, 16), 2, hidden_groups, 16}, 0.0f, high, rng);
  shared_down_scale = Tensor::random_bf16({ceil_div_of(H, 16), intermediate_groups, 16}, 0.0f, high, rng);
}

TernaryMoEWeights LayerTensors::weights() const {
  return {router.view(),      gate_up_packed.view(), gate_up_scale.view(),        down_packed.view(),
          down_scale.view(),  shared_gate_up.view(), shared_gate_up_scale.view(), shared_down.view(),
          shared_down_scale.view()};
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
  layer.packing = config.packing;
  layer.shared_format = config.shared_format;
  layer.shared_group_size = static_cast<size_t>(config.shared_group_size);
  layer.router = router.data();
  layer.gate_up_packed = gate_up_packed.data();
  layer.gate_up_scale = gate_up_scale.data();
  layer.down_packed = down_packed.data();
  layer.down_scale = down_scale.data();
  layer.shared_gate_up = shared_gate_up.data();
  layer.shared_gate_up_scale = shared_gate_up_scale.data();
  layer.shared_down = shared_down.data();
  layer.shared_down_scale = shared_down_scale.data();
  std::vector<float> y(x.size());
  reference_compute(layer, x.data(), y.data(), x.size() / layer.hidden_size);
  return y;
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
  const Scratch scratch(plan.total_bytes);
  EXPECT_TRUE(LayerRun(layer, *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens));
  return y;
}

}  // namespace mote::test
