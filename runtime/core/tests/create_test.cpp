// create() refuses whatever compute() could not run safely, and says why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "layer_fixture.h"
#include "matmul_fixture.h"
#include "scratch.h"

namespace mote::test {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

/// A spoiled tensor of the layer, or a spoiled view of it.
struct BadInput {
  const char* message;  // a part of the expected message
  std::function<void(LayerTensors&, TernaryMoEWeights&)> spoil;
};

constexpr uint16_t kBf16MinusOne = 0xbf80, kBf16Infinity = 0x7f80, kBf16Nan = 0xffc0;

/// A shape of its own for a tensor; kept for the length of the test.
void set_shape(TensorView& tensor, const std::vector<int64_t>& shape) {
  static std::vector<std::vector<int64_t>> kept;
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
    {"hidden_size is 0, but must be 1 to 131072", [](auto& t, auto&) { t.config.hidden_size = 0; }},
    {"hidden_size is 131073", [](auto& t, auto&) { t.config.hidden_size = 131073; }},
    {"intermediate_size is 0", [](auto& t, auto&) { t.config.intermediate_size = 0; }},
    {"intermediate_size is 131073", [](auto& t, auto&) { t.config.intermediate_size = 131073; }},
    {"intermediate_size is 9223372036854775807", [](auto& t, auto&) { t.config.intermediate_size = kMax; }},
    {"activation is \"gelu\"", [](auto& t, auto&) { t.config.activation = "gelu"; }},
    {"activation is missing", [](auto& t, auto&) { t.config.activation = nullptr; }},
    {"packing is \"2bit \", but this version of mote knows only", [](auto& t, auto&) { t.config.packing = "2bit "; }},
    {"packing is \"1.6\"", [](auto& t, auto&) { t.config.packing = "1.6"; }},
    {"gate_up_packed has size 2 in dimension 3, but num_experts, hidden_size, intermediate_size and packing ask for 1",
     [](auto& t, auto&) { t.config.packing = "1.6bit"; }},
    {"packing is missing; this version of mote knows \"2bit\" and \"1.6bit\"",
     [](auto& t, auto&) { t.config.packing = nullptr; }},
    {"layout_version is 2", [](auto& t, auto&) { t.config.layout_version = 2; }},
    {"layout_version is 0", [](auto& t, auto&) { t.config.layout_version = 0; }},
    {"router has size 3 in dimension 0", [](auto& t, auto&) { t.config.num_experts = 4; }},
    {"router has size 20 in dimension 1", [](auto& t, auto&) { t.config.hidden_size = 36; }},
    {"gate_up_packed has size 3 in dimension 1", [](auto& t, auto&) { t.config.intermediate_size = 49; }},
    {"router has rank 1, but must have rank 2", [](auto&, auto& w) { set_shape(w.router, {60}); }},
    {"router has rank 3", [](auto&, auto& w) { set_shape(w.router, {3, 20, 1}); }},
    {"router is missing", [](auto&, auto& w) { w.router = TensorView(); }},
    {"router has rank 0", [](auto&, auto& w) { w.router.rank = 0; }},
    {"router has no shape", [](auto&, auto& w) { w.router.shape = nullptr; }},
    {"router has no data", [](auto&, auto& w) { w.router.data = nullptr; }},
    {"router has size -20", [](auto&, auto& w) { set_shape(w.router, {3, -20}); }},
    {"gate_up_packed has rank 4", [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 2, 128}); }},
    {"gate_up_packed has size 1 in dimension 2", [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 1, 2, 64}); }},
    {"gate_up_packed has size 32 in dimension 4",
     [](auto&, auto& w) { set_shape(w.gate_up_packed, {3, 3, 2, 2, 32}); }},
    {"gate_up_packed has no data", [](auto&, auto& w) { w.gate_up_packed.data = nullptr; }},
    {"gate_up_scale has rank 1", [](auto&, auto& w) { set_shape(w.gate_up_scale, {6}); }},
    {"gate_up_scale has size 1 in dimension 1", [](auto&, auto& w) { set_shape(w.gate_up_scale, {3, 1}); }},
    {"gate_up_scale has no data", [](auto&, auto& w) { w.gate_up_scale.data = nullptr; }},
    {"down_packed has size 3 in dimension 1", [](auto&, auto& w) { set_shape(w.down_packed, {3, 3, 2, 64}); }},
    {"down_packed has size 4611686018427387904",
     [](auto&, auto& w) { set_shape(w.down_packed, {int64_t{1} << 62, 2, 3, 64}); }},
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

/// Of a layer with a shared expert in int4.
const BadInput kBadSharedInputs[] = {
    {"shared_format is missing; this version of mote knows \"none\", \"bf16\", \"int8\" and \"int4\"",
     [](auto& t, auto&) { t.config.shared_format = nullptr; }},
    {"shared_format is \"fp8\", but this version of mote knows only \"none\"",
     [](auto& t, auto&) { t.config.shared_format = "fp8"; }},
    {"shared_format is \"\"", [](auto& t, auto&) { t.config.shared_format = ""; }},
    {"shared_group_size is 0, but must be 32, 64, 128 or 256 for int4",
     [](auto& t, auto&) { t.config.shared_group_size = 0; }},
    {"shared_group_size is 16, but", [](auto& t, auto&) { t.config.shared_group_size = 16; }},
    {"shared_group_size is 512, but", [](auto& t, auto&) { t.config.shared_group_size = 512; }},
    {"shared_group_size is -9223372036854775808, but", [](auto& t, auto&) { t.config.shared_group_size = kMin; }},
    {"shared_group_size is 32, but must be 0 for shared_format int8",
     [](auto& t, auto&) { t.config.shared_format = "int8"; }},
    {"shared_group_size is 32, but must be 0 for shared_format none",
     [](auto& t, auto&) { t.config.shared_format = "none"; }},
    {"shared_group_size is 32, but must be 0 for shared_format bf16",
     [](auto& t, auto&) { t.config.shared_format = "bf16"; }},
    {"shared_gate_up_scale has size 2 in dimension 2, but hidden_size, intermediate_size, shared_format and "
     "shared_group_size ask for 1",
     [](auto& t, auto&) { t.config.shared_group_size = 64; }},
    {"shared_gate_up is missing", [](auto&, auto& w) { w.shared_gate_up = {}; }},
    {"shared_gate_up_scale is missing", [](auto&, auto& w) { w.shared_gate_up_scale = {}; }},
    {"shared_down is missing", [](auto&, auto& w) { w.shared_down = {}; }},
    {"shared_down_scale is missing", [](auto&, auto& w) { w.shared_down_scale = {}; }},
    {"shared_gate_up has no data", [](auto&, auto& w) { w.shared_gate_up.data = nullptr; }},
    {"shared_down has no shape", [](auto&, auto& w) { w.shared_down.shape = nullptr; }},
    {"shared_gate_up has rank 5, but must have rank 4",
     [](auto&, auto& w) { set_shape(w.shared_gate_up, {1, 4, 2, 5, 64}); }},
    {"shared_gate_up has size 3 in dimension 0", [](auto&, auto& w) { set_shape(w.shared_gate_up, {3, 2, 5, 64}); }},
    {"shared_gate_up has size 1 in dimension 1", [](auto&, auto& w) { set_shape(w.shared_gate_up, {4, 1, 5, 64}); }},
    {"shared_gate_up has size 10 in dimension 2", [](auto&, auto& w) { set_shape(w.shared_gate_up, {4, 2, 10, 64}); }},
    {"shared_gate_up has size 32 in dimension 3", [](auto&, auto& w) { set_shape(w.shared_gate_up, {4, 2, 5, 32}); }},
    {"shared_down has rank 4, but must have rank 3", [](auto&, auto& w) { set_shape(w.shared_down, {1, 3, 7, 64}); }},
    {"shared_down has size -3 in dimension 0", [](auto&, auto& w) { set_shape(w.shared_down, {-3, 7, 64}); }},
    {"shared_down has size 6 in dimension 1", [](auto&, auto& w) { set_shape(w.shared_down, {3, 6, 64}); }},
    {"shared_gate_up_scale has rank 3", [](auto&, auto& w) { set_shape(w.shared_gate_up_scale, {4, 2, 32}); }},
    {"shared_gate_up_scale has size 1 in dimension 2",
     [](auto&, auto& w) { set_shape(w.shared_gate_up_scale, {4, 2, 1, 16}); }},
    {"shared_down_scale has size 50 in dimension 2",
     [](auto&, auto& w) { set_shape(w.shared_down_scale, {3, 2, 50}); }},
    {"shared_down_scale has size 1 in dimension 1", [](auto&, auto& w) { set_shape(w.shared_down_scale, {3, 1, 16}); }},
    {"shared_gate_up_scale has the value inf at index 255, but must be finite and not negative",
     [](auto& t, auto&) { t.shared_gate_up_scale.set_bits16(255, kBf16Infinity); }},
    {"shared_gate_up_scale has the value -1 at index 0",
     [](auto& t, auto&) { t.shared_gate_up_scale.set_bits16(0, kBf16MinusOne); }},
    {"nan at index 95", [](auto& t, auto&) { t.shared_down_scale.set_bits16(95, kBf16Nan); }},
    {"shared_down_scale has the value -", [](auto& t, auto&) { t.shared_down_scale.set_bits16(7, 0x8001); }},
    // The checks of the experts' tensors come first, with the same words.
    {"down_scale has the value -1 at index 2", [](auto& t, auto&) { t.down_scale.set_float(2, -1.0f); }},
};

/// What a layer without a shared expert, or without its scales, must not have.
const BadInput kSuperfluousInputs[] = {
    {"shared_gate_up is given, but shared_format none has none",
     [](auto& t, auto& w) { w.shared_gate_up = t.router.view(); }},
    {"shared_gate_up_scale is given, but shared_format none has none",
     [](auto& t, auto& w) { w.shared_gate_up_scale = t.router.view(); }},
    {"shared_down is given, but shared_format none has none",
     [](auto& t, auto& w) { w.shared_down = t.router.view(); }},
    {"shared_down_scale is given, but shared_format none has none",
     [](auto& t, auto& w) { w.shared_down_scale = t.router.view(); }},
};
const BadInput kSuperfluousBf16Inputs[] = {
    {"shared_gate_up_scale is given, but shared_format bf16 has none",
     [](auto& t, auto& w) { w.shared_gate_up_scale = t.router.view(); }},
    {"shared_down_scale is given, but shared_format bf16 has none",
     [](auto& t, auto& w) { w.shared_down_scale = t.router.view(); }},
};

template <size_t N>
void expect_refused(const Dimensions& dimensions, const BadInput (&inputs)[N]) {
  for (const BadInput& bad : inputs) {
    Rng rng(1);
    LayerTensors tensors(dimensions, rng);
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

TEST(Create, RefusesBadInputAndLeavesTheLayerAlone) { expect_refused({3, 2, 20, 40, false}, kBadInputs); }

TEST(Create, RefusesBadSharedExperts) {
  expect_refused({3, 2, 40, 50, false, "2bit", "int4", 32}, kBadSharedInputs);
  expect_refused({3, 2, 20, 40, false}, kSuperfluousInputs);
  expect_refused({3, 2, 20, 40, false, "1.6bit", "bf16"}, kSuperfluousBf16Inputs);
}

TEST(Create, AcceptsTheLimits) {
  Rng rng(2);
  for (const Dimensions& d : {Dimensions{256, 256, 1, 1, true}, Dimensions{1, 1, 1 << 17, 1, false, "1.6bit", "int8"},
                              Dimensions{1, 1, 1, 1 << 17, false, "2bit", "int4", 128}}) {
    const LayerTensors tensors(d, rng);
    tensors.create();
  }
}

TEST(Create, AcceptsScalesOfMinusZero) {
  Rng rng(3);
  LayerTensors tensors({2, 1, 16, 16, false, "2bit", "int8"}, rng);
  tensors.shared_down_scale.set_bits16(3, 0x8000);
  tensors.down_scale.set_float(1, -0.0f);
  tensors.create();
}

/// Bounded by kScratchBudget, or by what one token needs.
template <class Layer>
void expect_bounded_scratch(const Layer& layer) {
  size_t one = 0, last = 0;
  ASSERT_TRUE(layer.scratch_size(1, &one));
  constexpr size_t kTokens[] = {0, 1, 10, 1000, 1000000, std::numeric_limits<size_t>::max()};
  for (const size_t tokens : kTokens) {
    size_t bytes = 0;
    ASSERT_TRUE(layer.scratch_size(tokens, &bytes));
    EXPECT_EQ(bytes % kScratchAlignment, 0u);
    EXPECT_LE(bytes, std::max(kScratchBudget, one)) << tokens;
    if (tokens > 10) continue;
    EXPECT_GE(bytes, last) << tokens;
    last = bytes;
  }
}

TEST(Create, ScratchIsBoundedForAnyNumberOfTokens) {
  Rng rng(4);
  for (const Formats& formats : kFormats) {
    for (const Dimensions& d : {Dimensions{4, 1, 32, 32}, Dimensions{1, 1, 1536, 2240}, Dimensions{64, 64, 100, 100}}) {
      const LayerTensors tensors(with_formats(d, formats), rng);
      expect_bounded_scratch(tensors.create());
    }
  }
  expect_bounded_scratch(MatMulTensors(1 << 17, 16, "1.6bit", rng).create());
  expect_bounded_scratch(QuantizedMatMulTensors(1 << 17, 16, "int4", 32, false, rng).create());
  expect_bounded_scratch(QuantizedMatMulTensors(1 << 17, 16, "bf16", 0, false, rng).create());
}

struct BadMatMulInput {
  const char* message;
  std::function<void(MatMulTensors&, TernaryMatMulWeights&)> spoil;
};

const BadMatMulInput kBadMatMulInputs[] = {
    {"in_features is 0, but must be 1 to 131072", [](auto& t, auto&) { t.config.in_features = 0; }},
    {"in_features is 131073", [](auto& t, auto&) { t.config.in_features = 131073; }},
    {"out_features is -9223372036854775808", [](auto& t, auto&) { t.config.out_features = kMin; }},
    {"out_features is 9223372036854775807", [](auto& t, auto&) { t.config.out_features = kMax; }},
    {"packing is missing", [](auto& t, auto&) { t.config.packing = nullptr; }},
    {"packing is \"int4\"", [](auto& t, auto&) { t.config.packing = "int4"; }},
    {"layout_version is 0, but this version of mote reads 1", [](auto& t, auto&) { t.config.layout_version = 0; }},
    {"packed has size 3 in dimension 0, but in_features, out_features and packing ask for 4",
     [](auto& t, auto&) { t.config.out_features = 49; }},
    {"packed has size 2 in dimension 1", [](auto& t, auto&) { t.config.in_features = 41; }},
    {"packed is missing", [](auto&, auto& w) { w.packed = {}; }},
    {"packed has no data", [](auto&, auto& w) { w.packed.data = nullptr; }},
    {"packed has rank 4, but must have rank 3", [](auto&, auto& w) { set_shape(w.packed, {1, 3, 2, 64}); }},
    {"packed has size 128 in dimension 2", [](auto&, auto& w) { set_shape(w.packed, {3, 2, 128}); }},
    {"scale is missing", [](auto&, auto& w) { w.scale = {}; }},
    {"scale has rank 0, but must have rank 1", [](auto&, auto& w) { w.scale.rank = 0; }},
    {"scale has size 3 in dimension 0", [](auto&, auto& w) { set_shape(w.scale, {3}); }},
    {"scale has the value -1 at index 0, but must be finite and not negative",
     [](auto& t, auto&) { t.scale.set_float(0, -1.0f); }},
    {"scale has the value inf", [](auto& t, auto&) { t.scale.set_float(0, INFINITY); }},
    {"nan at index 0", [](auto& t, auto&) { t.scale.set_float(0, NAN); }},
};

TEST(Create, RefusesBadMatMulsAndLeavesTheLayerAlone) {
  for (const BadMatMulInput& bad : kBadMatMulInputs) {
    Rng rng(5);
    MatMulTensors tensors(40, 48, "1.6bit", rng);
    TernaryMatMulWeights weights = tensors.weights();
    bad.spoil(tensors, weights);
    TernaryMatMul layer;
    const Status status = TernaryMatMul::create(tensors.config, weights, &layer);
    EXPECT_FALSE(status.is_ok()) << bad.message;
    EXPECT_NE(std::strstr(status.message(), bad.message), nullptr)
        << "expected \"" << bad.message << "\", got \"" << status.message() << "\"";
    EXPECT_EQ(layer.in_features(), 0) << bad.message;
  }
}

struct BadQuantizedMatMulInput {
  const char* message;
  std::function<void(QuantizedMatMulTensors&, QuantizedMatMulWeights&)> spoil;
};

/// Of a layer in int4 with a bias.
const BadQuantizedMatMulInput kBadQuantizedMatMulInputs[] = {
    {"in_features is 0, but must be 1 to 131072", [](auto& t, auto&) { t.config.in_features = 0; }},
    {"in_features is 131073", [](auto& t, auto&) { t.config.in_features = 131073; }},
    {"out_features is -9223372036854775808, but must be 1 to 1048576", [](auto& t, auto&) { t.config.out_features = kMin; }},
    {"out_features is 1048577", [](auto& t, auto&) { t.config.out_features = 1048577; }},
    {"out_features is 9223372036854775807", [](auto& t, auto&) { t.config.out_features = kMax; }},
    {"format is missing; this version of mote knows \"bf16\", \"int8\" and \"int4\"",
     [](auto& t, auto&) { t.config.format = nullptr; }},
    {"format is \"none\", but this version of mote knows only \"bf16\"", [](auto& t, auto&) { t.config.format = "none"; }},
    {"format is \"\"", [](auto& t, auto&) { t.config.format = ""; }},
    {"group_size is 32, but must be 0 for format int8", [](auto& t, auto&) { t.config.format = "int8"; }},
    {"group_size is 32, but must be 0 for format bf16", [](auto& t, auto&) { t.config.format = "bf16"; }},
    {"group_size is 0, but must be 32, 64, 128 or 256 for int4", [](auto& t, auto&) { t.config.group_size = 0; }},
    {"group_size is 16", [](auto& t, auto&) { t.config.group_size = 16; }},
    {"group_size is -9223372036854775808", [](auto& t, auto&) { t.config.group_size = kMin; }},
    {"layout_version is 2, but this version of mote reads 1", [](auto& t, auto&) { t.config.layout_version = 2; }},
    {"weight has size 3 in dimension 0, but in_features, out_features and format ask for 4",
     [](auto& t, auto&) { t.config.out_features = 49; }},
    {"weight has size 5 in dimension 1", [](auto& t, auto&) { t.config.in_features = 41; }},
    {"weight is missing", [](auto&, auto& w) { w.weight = {}; }},
    {"weight has no data", [](auto&, auto& w) { w.weight.data = nullptr; }},
    {"weight has rank 4, but must have rank 3", [](auto&, auto& w) { set_shape(w.weight, {1, 3, 5, 64}); }},
    {"weight has size 128 in dimension 2", [](auto&, auto& w) { set_shape(w.weight, {3, 5, 128}); }},
    {"scale has size 2 in dimension 1, but in_features, out_features, format and group_size ask for 1",
     [](auto& t, auto&) { t.config.group_size = 64; }},
    {"scale is missing", [](auto&, auto& w) { w.scale = {}; }},
    {"scale has no data", [](auto&, auto& w) { w.scale.data = nullptr; }},
    {"scale has rank 2, but must have rank 3", [](auto&, auto& w) { set_shape(w.scale, {6, 16}); }},
    {"scale has size 17 in dimension 2", [](auto&, auto& w) { set_shape(w.scale, {3, 2, 17}); }},
    {"scale has the value inf at index 95, but must be finite and not negative",
     [](auto& t, auto&) { t.scale.set_bits16(95, kBf16Infinity); }},
    {"scale has the value -1 at index 0", [](auto& t, auto&) { t.scale.set_bits16(0, kBf16MinusOne); }},
    {"nan at index 40", [](auto& t, auto&) { t.scale.set_bits16(40, kBf16Nan); }},
    {"bias has size 48 in dimension 0, but out_features ask for 47", [](auto& t, auto&) { t.config.out_features = 47; }},
    {"bias has rank 2, but must have rank 1", [](auto&, auto& w) { set_shape(w.bias, {1, 48}); }},
    {"bias has no data", [](auto&, auto& w) { w.bias.data = nullptr; }},
    {"bias has no shape", [](auto&, auto& w) { w.bias.shape = nullptr; }},
    {"bias has the value inf at index 47, but must be finite", [](auto& t, auto&) { t.bias.set_float(47, INFINITY); }},
    {"nan at index 1", [](auto& t, auto&) { t.bias.set_float(1, NAN); }},
};

TEST(Create, RefusesBadQuantizedMatMulsAndLeavesTheLayerAlone) {
  Rng rng(6);
  for (const BadQuantizedMatMulInput& bad : kBadQuantizedMatMulInputs) {
    QuantizedMatMulTensors tensors(40, 48, "int4", 32, true, rng);
    QuantizedMatMulWeights weights = tensors.weights();
    bad.spoil(tensors, weights);
    QuantizedMatMul layer;
    const Status status = QuantizedMatMul::create(tensors.config, weights, &layer);
    EXPECT_FALSE(status.is_ok()) << bad.message;
    EXPECT_NE(std::strstr(status.message(), bad.message), nullptr)
        << "expected \"" << bad.message << "\", got \"" << status.message() << "\"";
    EXPECT_EQ(layer.in_features(), 0) << bad.message;
  }
}

TEST(Create, RefusesScalesOfBf16) {
  Rng rng(7);
  const QuantizedMatMulTensors tensors(40, 48, "bf16", 0, true, rng);
  QuantizedMatMulWeights weights = tensors.weights();
  weights.scale = tensors.bias.view();
  QuantizedMatMul layer;
  EXPECT_STREQ(QuantizedMatMul::create(tensors.config, weights, &layer).message(), "scale is given, but format bf16 has none");
}

TEST(Create, AcceptsTheLimitsOfQuantizedMatMuls) {
  Rng rng(8);
  QuantizedMatMulTensors(1, 1 << 20, "int8", 0, true, rng).create();
  QuantizedMatMulTensors(1 << 17, 1, "int4", 128, false, rng).create();
  QuantizedMatMulTensors(1 << 17, 1, "bf16", 0, false, rng).create();
}

}  // namespace
}  // namespace mote::test
