// create() refuses whatever compute() could not run safely, and says why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "layer_fixture.h"

namespace mote::test {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

struct BadInput {
  const char* message;  // a part of the expected message
  std::function<void(LayerTensors&, TernaryMoEWeights&)> spoil;
};

/// A shape of its own for a tensor; kept for the length of the test.
void set_shape(TensorView& tensor, const std::vector<int64_t>& shape) {
  static std::vector<std::vector<int64_t>> kept;
  kept.reserve(64);
  kept.push_back(shape);
  tensor.shape = kept.back().data();
  tensor.rank = shape.size();
}

const BadInput kBadInputs[] = {
    {"num_experts is 0, but must be 1 to 256", [](auto& t, auto&) { t.config.num_experts = 0; }},
    {"num_experts is -1", [](auto& t, auto&) { t.config.num_experts = -1; }},
    {"num_experts is 257", [](auto& t, auto&) { t.config.num_experts = 257; }},
    {"num_experts is 9223372036854775807", [](auto& t, auto&) { t.config.num_experts = kMax; }},
    {"top_k is 0, but must be 1 to 3", [](auto& t, auto&) { t.config.top_k = 0; }},
    {"top_k is 4", [](auto& t, auto&) { t.config.top_k = 4; }},
    {"top_k is -9223372036854775808", [](auto& t, auto&) { t.config.top_k = kMin; }},
    {"hidden_size is 0, but must be 1 to 1048576", [](auto& t, auto&) { t.config.hidden_size = 0; }},
    {"hidden_size is 1048577", [](auto& t, auto&) { t.config.hidden_size = 1048577; }},
    {"intermediate_size is 0", [](auto& t, auto&) { t.config.intermediate_size = 0; }},
    {"intermediate_size is 1048577", [](auto& t, auto&) { t.config.intermediate_size = 1048577; }},
    {"intermediate_size is 9223372036854775807", [](auto& t, auto&) { t.config.intermediate_size = kMax; }},
    {"activation is \"gelu\"", [](auto& t, auto&) { t.config.activation = "gelu"; }},
    {"activation is missing", [](auto& t, auto&) { t.config.activation = nullptr; }},
    {"packing is \"2bit \"", [](auto& t, auto&) { t.config.packing = "2bit "; }},
    {"packing is missing", [](auto& t, auto&) { t.config.packing = nullptr; }},
    {"layout_version is 2", [](auto& t, auto&) { t.config.layout_version = 2; }},
    {"layout_version is 0", [](auto& t, auto&) { t.config.layout_version = 0; }},
    {"router has size 3 in dimension 0", [](auto& t, auto&) { t.config.num_experts = 4; }},
    {"router has size 20 in dimension 1", [](auto& t, auto&) { t.config.hidden_size = 36; }},
    {"gate_up_packed has size 3 in dimension 1", [](auto& t, auto&) { t.config.intermediate_size = 49; }},
    {"router has rank 1, but must have rank 2", [](auto&, auto& w) { set_shape(w.router, {60}); }},
    {"router has rank 3", [](auto&, auto& w) { set_shape(w.router, {3, 20, 1}); }},
    {"router has rank 0", [](auto&, auto& w) { w.router = TensorView(); }},
    {"router has no shape", [](auto&, auto& w) { w.router.shape = nullptr; }},
    {"router has no data", [](auto&, auto& w) { w.router.data = nullptr; }},
    {"router has size -20", [](auto&, auto& w) { set_shape(w.router, {3, -20}); }},
    {"gate_up_packed has rank 4", [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 2, 128}); }},
    {"gate_up_packed has size 1 in dimension 2", [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 1, 2, 64}); }},
    {"gate_up_packed has size 32 in dimension 4", [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 2, 2, 32}); }},
    {"gate_up_packed has no data", [](auto&, auto& w) { w.gate_up_packed.data = nullptr; }},
    {"gate_up_scale has rank 1", [](auto&, auto& w) { set_shape(w.gate_up_scale, {6}); }},
    {"gate_up_scale has size 1 in dimension 1", [](auto&, auto& w) { set_shape(w.gate_up_scale, {3, 1}); }},
    {"gate_up_scale has no data", [](auto&, auto& w) { w.gate_up_scale.data = nullptr; }},
    {"down_packed has size 3 in dimension 1", [](auto&, auto& w) { set_shape(w.down_packed, {3, 3, 2, 64}); }},
    {"down_packed has size 4611686018427387904", [](auto&, auto& w) { set_shape(w.down_packed, {int64_t{1} << 62, 2, 3, 64}); }},
    {"down_packed has no data", [](auto&, auto& w) { w.down_packed.data = nullptr; }},
    {"down_scale has rank 2", [](auto&, auto& w) { set_shape(w.down_scale, {3, 1}); }},
    {"down_scale has size 0", [](auto&, auto& w) { set_shape(w.down_scale, {0}); }},
    {"down_scale has no data", [](auto&, auto& w) { w.down_scale.data = nullptr; }},
    {"gate_up_scale has the value -1 at index 5", [](auto& t, auto&) { t.gate_up_scale.set_float(5, -1.0f); }},
    {"gate_up_scale has the value inf at index 0", [](auto& t, auto&) { t.gate_up_scale.set_float(0, INFINITY); }},
    {"down_scale has the value", [](auto& t, auto&) { t.down_scale.set_float(2, NAN); }},
    {"down_scale has the value -1.4013e-45 at index 1", [](auto& t, auto&) { t.down_scale.set_float(1, -1e-45f); }},
    {"router has the value -inf at index 59", [](auto& t, auto&) { t.router.set_float(59, -INFINITY); }},
};

TEST(Create, RefusesBadInputAndLeavesTheLayerAlone) {
  for (const BadInput& bad : kBadInputs) {
    Rng rng(1);
    LayerTensors tensors({3, 2, 20, 40, false}, rng);
    TernaryMoEWeights weights = tensors.weights();
    bad.spoil(tensors, weights);
    TernaryMoE layer;
    const Status status = TernaryMoE::create(tensors.config, weights, &layer);
    EXPECT_FALSE(status.is_ok()) << bad.message;
    EXPECT_NE(std::strstr(status.message(), bad.message), nullptr)
        << "expected \"" << bad.message << "\", got \"" << status.message() << "\"";
    EXPECT_EQ(layer.hidden_size(), 0) << bad.message;
  }
}

TEST(Create, AcceptsTheLimits) {
  Rng rng(2);
  LayerTensors({256, 256, 1, 1, true}, rng).create();
  LayerTensors({1, 1, 1 << 20, 1, false}, rng).create();
  LayerTensors({1, 1, 1, 1 << 20, false}, rng).create();
}

TEST(Create, AcceptsFloatsAtAnyAddress) {
  Rng rng(3);
  LayerTensors tensors({4, 2, 21, 18, true}, rng);
  for (Unaligned* floats : {&tensors.router, &tensors.gate_up_scale, &tensors.down_scale}) {
    Unaligned moved(floats->size(), 3);
    std::copy_n(floats->data(), floats->size(), moved.data());
    *floats = moved;
  }
  const std::vector<float> x = random_values(3 * 21, rng);
  for (const IsaEntry& isa : supported_isas()) {
    expect_same_bits(compute(tensors.create(), isa, x), tensors.expected(x), isa.name);
  }
}

TEST(Create, ScratchIsBoundedForAnyNumberOfTokens) {
  Rng rng(4);
  constexpr size_t kMegabyte = 1 << 20;
  for (const Dimensions& d : {Dimensions{4, 1, 32, 32, false}, Dimensions{1, 1, 1536, 8960, false},
                              Dimensions{64, 64, 100, 100, false}}) {
    const TernaryMoE layer = LayerTensors(d, rng).create();
    size_t last = 0;
    for (size_t tokens : {size_t{0}, size_t{1}, size_t{10}, size_t{1000000}, std::numeric_limits<size_t>::max()}) {
      size_t bytes = 0;
      ASSERT_TRUE(layer.scratch_size(tokens, &bytes));
      EXPECT_LE(bytes, 16 * kMegabyte) << tokens;
      EXPECT_GE(bytes, last) << tokens;
      if (tokens <= 10) last = bytes;
    }
  }
}

}  // namespace
}  // namespace mote::test
