// Every instruction set against the reference, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "layer_fixture.h"
#include "layer_run.h"
#include "random_order_pool.h"
#include "reference.h"

namespace mote::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void expect_all_isas_match(const LayerTensors& tensors, const std::vector<float>& x, const std::string& what) {
  const TernaryMoE layer = tensors.create();
  const std::vector<float> expected = tensors.expected(x);
  for (const IsaEntry& isa : supported_isas()) {
    expect_same_bits(compute(layer, isa, x), expected,
                     what + " tokens=" + std::to_string(x.size() / layer.hidden_size()) + " on " + isa.name);
  }
}

void expect_all_isas_match(const Dimensions& d, size_t tokens, Rng& rng) {
  const LayerTensors tensors(d, rng);
  expect_all_isas_match(tensors, random_values(tokens * static_cast<size_t>(d.hidden_size), rng), to_string(d));
}

/// One in three scales becomes this one.
void set_some_scales(Tensor& scales, float value, Rng& rng) {
  for (size_t i = 0; i < scales.size() / sizeof(uint16_t); ++i) {
    if (rng() % 3 == 0) scales.set_bits16(i, bf16_bits(value));
  }
}

struct Routing {
  int64_t num_experts, top_k;
};
constexpr Routing kRoutings[] = {{1, 1}, {4, 1}, {4, 2}, {5, 5}, {64, 1}, {64, 8}, {17, 17}, {16, 3}};

// The edges of lines and groups of every format, and of the lines after which AVX2 widens its sums (2bit: 160 inputs).
constexpr int64_t kWidths[] = {1, 15, 16, 17, 19, 20, 21, 31, 32, 33, 64, 100, 127, 128, 129, 160, 161, 336};

TEST(Layer, MatchesReferenceForEveryPairOfWidths) {
  Rng rng(1);
  for (size_t i = 0; i < std::size(kWidths); ++i) {
    for (size_t j = 0; j < std::size(kWidths); ++j) {
      // Each width meets each pair of formats, as hidden size and as intermediate size.
      const Formats& formats = kFormats[(i + 5 * j) % std::size(kFormats)];
      const Routing& routing = kRoutings[(3 * i + j) % std::size(kRoutings)];
      const Dimensions d = {routing.num_experts, routing.top_k, kWidths[i], kWidths[j], (i + j) % 2 != 0};
      expect_all_isas_match(with_formats(d, formats), 1 + (2 * i + j) % 4, rng);
    }
  }
}

TEST(Layer, MatchesReferenceForEveryRouting) {
  Rng rng(2);
  for (const Formats& formats : kFormats) {
    for (const Routing& routing : kRoutings) {
      const Dimensions d = {routing.num_experts, routing.top_k, 40, 24, rng() % 2 != 0};
      for (size_t tokens : {1, 2, 17}) expect_all_isas_match(with_formats(d, formats), tokens, rng);
    }
  }
  expect_all_isas_match({256, 256, 17, 16, true, "1.6bit", "int8"}, 3, rng);
}

TEST(Layer, MatchesReferenceForEveryNumberOfTokens) {
  Rng rng(3);
  size_t round = 0;
  for (size_t tokens = 1; tokens <= 33; ++tokens) {
    for (size_t i = 0; i < 4; ++i) {
      const Formats& formats = kFormats[round++ % std::size(kFormats)];
      expect_all_isas_match(with_formats({1, 1, 48, 33, false}, formats), tokens, rng);
      expect_all_isas_match(with_formats({3, 2, 45, 34, true}, formats), tokens, rng);
    }
    ++round;
  }
  expect_all_isas_match({4, 1, 64, 48, false, "2bit", "int4", 32}, 128, rng);
}

TEST(Layer, ChunksOfAnySizeChangeNothing) {
  Rng rng(4);
  for (const Formats& formats : kFormats) {
    const LayerTensors tensors(with_formats({4, 2, 37, 36, true}, formats), rng);
    const std::vector<float> x = random_values(50 * 37, rng);
    const std::vector<float> expected = tensors.expected(x);
    for (const IsaEntry& isa : supported_isas()) {
      for (size_t chunk : {1, 2, 7, 49, 50, 51}) {
        expect_same_bits(compute_in_chunks(tensors.create(), isa, x, chunk), expected,
                         to_string(tensors.dimensions) + " " + isa.name + " chunk=" + std::to_string(chunk));
      }
    }
  }
}

TEST(Layer, MatchesReferenceAtRealWidths) {
  Rng rng(5);
  expect_all_isas_match({4, 1, 1536, 8960 / 16, false, "2bit", "int4", 128}, 9, rng);
  expect_all_isas_match({4, 1, 1536, 8960 / 16, false, "1.6bit", "int8"}, 1, rng);
  expect_all_isas_match({2, 2, 64, 8960, true, "1.6bit", "bf16"}, 2, rng);
  expect_all_isas_match({2, 1, 64, 8960, true, "2bit", "int8"}, 2, rng);
}

TEST(Layer, NoTokensIsNoWork) {
  Rng rng(6);
  const LayerTensors tensors({2, 1, 16, 16, false}, rng);
  const TernaryMoE layer = tensors.create();
  size_t bytes = 1;
  EXPECT_TRUE(layer.scratch_size(0, &bytes));
  EXPECT_EQ(bytes, 0u);
  EXPECT_TRUE(layer.compute(nullptr, nullptr, 0, nullptr, {}));
}

TEST(Layer, TiesGoToTheLowerIndex) {
  Rng rng(7);
  for (int64_t top_k : {1, 2, 5}) {
    LayerTensors tensors({5, top_k, 33, 20, false}, rng);
    // Experts 1, 3 and 4 have the same row; with x scaled by 0 all logits are equal, of either sign of zero.
    for (size_t k = 0; k < 33; ++k) {
      tensors.router.set_float(3 * 33 + k, tensors.router.get_float(33 + k));
      tensors.router.set_float(4 * 33 + k, tensors.router.get_float(33 + k));
    }
    std::vector<float> x = random_values(6 * 33, rng);
    for (size_t k = 0; k < 33; ++k) x[k] = k % 2 != 0 ? -0.0f : 0.0f;
    expect_all_isas_match(tensors, x, "ties");
  }
}

TEST(Layer, RowsThatAreNotFiniteAreNanAndLeaveOthersAlone) {
  Rng rng(8);
  for (const Formats& formats : kFormats) {
    const LayerTensors tensors(with_formats({4, 2, 35, 18, true}, formats), rng);
    std::vector<float> x = random_values(12 * 35, rng);
    x[0 * 35 + 34] = kNan;
    x[3 * 35 + 0] = kInf;
    x[5 * 35 + 16] = -kInf;
    x[11 * 35 + 20] = -kNan;
    expect_all_isas_match(tensors, x, "not finite");

    std::fill(x.begin(), x.end(), kNan);
    expect_all_isas_match(tensors, x, "all NaN");
    for (const IsaEntry& isa : supported_isas()) {
      uint32_t bits;
      const float first = compute(tensors.create(), isa, x)[0];
      std::memcpy(&bits, &first, sizeof(bits));
      EXPECT_EQ(bits, 0x7fc00000u);
    }
  }
}

TEST(Layer, LogitsThatOverflowAreNan) {
  Rng rng(9);
  LayerTensors tensors({3, 1, 20, 16, false}, rng);
  tensors.router.set_float(20 + 3, std::numeric_limits<float>::max());
  std::vector<float> x = random_values(4 * 20, rng);
  x[2 * 20 + 3] = 1e10f;
  expect_all_isas_match(tensors, x, "overflowing logit");
  // Logits so far apart that their difference overflows are finite all the same.
  tensors.router.set_float(3, -std::numeric_limits<float>::max());
  for (size_t t = 0; t < 4; ++t) x[t * 20 + 3] = 0.9f;
  expect_all_isas_match(tensors, x, "distant logits");
}

TEST(Layer, ScalesFromZeroToOverflow) {
  Rng rng(10);
  for (float gate : {0.0f, 1e-30f, 1.0f, 1e30f, 3e38f}) {
    for (float up : {0.0f, 1e-42f, 1.0f, 3e38f}) {
      for (float down : {0.0f, 1e-38f, 1.0f, 3e38f}) {
        LayerTensors tensors({2, 2, 24, 40, false, down == 1.0f ? "1.6bit" : "2bit"}, rng);
        for (size_t e = 0; e < 2; ++e) {
          tensors.gate_up_scale.set_float(2 * e, gate);
          tensors.gate_up_scale.set_float(2 * e + 1, up);
          tensors.down_scale.set_float(e, down);
        }
        expect_all_isas_match(tensors, random_values(3 * 24, rng), "scales");
      }
    }
  }
}

TEST(Layer, SharedScalesFromZeroToOverflow) {
  Rng rng(19);
  for (const Formats& formats : kFormats) {
    const bool has_scales = formats.shared_format[0] == 'i';
    for (float gate_up : {0.0f, -0.0f, 1e-40f, 1.0f, 1e15f, 3e38f}) {
      for (float down : {0.0f, 1e-38f, 1.0f, 3e38f}) {
        if (!has_scales) continue;
        LayerTensors tensors(with_formats({2, 1, 70, 40, false}, formats), rng);
        set_some_scales(tensors.shared_gate_up_scale, gate_up, rng);
        set_some_scales(tensors.shared_down_scale, down, rng);
        expect_all_isas_match(tensors, random_values(3 * 70, rng), "shared scales " + to_string(tensors.dimensions));
      }
    }
  }
}

/// Weights of bf16 are not checked: IEEE arithmetic says what comes of them. Widths are even, so that none is padding.
TEST(Layer, SharedWeightsThatAreNotFinite) {
  Rng rng(20);
  constexpr uint16_t kBits[] = {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81, 0x7f7f, 0xff7f, 0x0001, 0x8000};
  for (size_t round = 0; round < 24; ++round) {
    // Odd widths fill up their lines with a weight that counts for nothing, unless it is not finite.
    const int64_t odd = static_cast<int64_t>(round % 2);
    const size_t width = 34 + round % 2;
    LayerTensors tensors({3, 1, 34 + odd, 40 + odd, false, "2bit", "bf16"}, rng);
    for (Tensor* weights : {&tensors.shared_gate_up, &tensors.shared_down}) {
      for (size_t i = 0; i < round; ++i) {
        weights->set_bits16(rng() % (weights->size() / 2), kBits[rng() % std::size(kBits)]);
      }
    }
    expect_all_isas_match(tensors, random_values(3 * width, rng), "bf16 round " + std::to_string(round));
  }
}

/// h overflows in the shared expert, which makes all its outputs NaN in every format.
TEST(Layer, SharedIntermediateValuesThatOverflow) {
  Rng rng(21);
  for (const Formats& formats : kFormats) {
    LayerTensors tensors(with_formats({2, 1, 32, 48, false}, formats), rng);
    std::vector<float> x = random_values(20 * 32, rng);
    // From no product of gate and up that exceeds 3e38, by a single one, to nearly all.
    for (size_t k = 0; k < x.size(); ++k) x[k] *= 3e18f * std::pow(1.25f, static_cast<float>(k / 32));
    expect_all_isas_match(tensors, x, "h overflows " + to_string(tensors.dimensions));
  }
}

TEST(Layer, InputsOfEveryMagnitude) {
  Rng rng(11);
  size_t round = 0;
  for (int exponent = -149; exponent <= 127; exponent += 6) {
    const LayerTensors tensors(with_formats({3, 2, 50, 30, false}, kFormats[round++ % std::size(kFormats)]), rng);
    std::vector<float> x = random_values(2 * 50, rng);
    for (float& value : x) value = std::ldexp(value / 2.0f, exponent);
    expect_all_isas_match(tensors, x, "2^" + std::to_string(exponent) + " " + to_string(tensors.dimensions));
  }
}

TEST(Layer, RoundsHalvesToEven) {
  Rng rng(12);
  const LayerTensors tensors({1, 1, 128, 16, false, "1.6bit", "int4", 32}, rng);
  std::vector<float> x(128);
  for (size_t k = 0; k < x.size(); ++k) x[k] = static_cast<float>(k) - 63.5f;
  x[0] = 127.0f;  // then s is exactly 1
  expect_all_isas_match(tensors, x, "halves");
}

TEST(Layer, AllTokensToOneExpert) {
  Rng rng(13);
  LayerTensors tensors({8, 1, 32, 32, false, "1.6bit", "bf16"}, rng);
  for (size_t k = 0; k < 32; ++k) tensors.router.set_float(5 * 32 + k, 10.0f);
  std::vector<float> x = random_values(40 * 32, rng);
  for (float& value : x) value = std::fabs(value);
  expect_all_isas_match(tensors, x, "one expert");
}

TEST(Layer, ThreadsAndOrderChangeNothing) {
  Rng rng(14);
  // The last has several tasks for a matrix.
  for (const Dimensions& d : {Dimensions{4, 1, 200, 130, false, "2bit", "int4", 32},
                              Dimensions{1, 1, 40, 2100, false, "2bit", "int8"},
                              Dimensions{6, 3, 100, 200, true, "1.6bit", "bf16"}}) {
    const LayerTensors tensors(d, rng);
    const TernaryMoE layer = tensors.create();
    for (size_t tokens : {1, 13, 110}) {
      const std::vector<float> x = random_values(tokens * static_cast<size_t>(d.hidden_size), rng);
      for (const IsaEntry& isa : supported_isas()) {
        const std::vector<float> serial = compute(layer, isa, x);
        for (size_t threads = 1; threads <= 8; ++threads) {
          RandomOrderPool pool(threads, rng());
          expect_same_bits(compute_in_chunks(layer, isa, x, 100, pool.view()), serial,
                           to_string(d) + " " + isa.name + " threads=" + std::to_string(threads));
        }
      }
    }
  }
}

/// Wide enough that each of the five steps of 20 tokens has several tasks.
constexpr int64_t kWideEnough = 1760;
constexpr size_t kParallelSteps = 5;

TEST(Layer, NothingFollowsAFailureOfThePool) {
  Rng rng(17);
  const size_t tokens = 40, chunks = 2;
  for (const Formats& formats : {Formats{"2bit", "none", 0}, Formats{"1.6bit", "int4", 128}}) {
    const LayerTensors tensors(with_formats({4, 1, kWideEnough, kWideEnough, false}, formats), rng);
    const TernaryMoE layer = tensors.create();
    const std::vector<float> x = random_values(tokens * kWideEnough, rng);
    ScratchLayout plan;
    ASSERT_TRUE(LayerRun::plan_scratch(layer, tokens / chunks, &plan));
    Scratch scratch(plan.total_bytes);
    std::vector<float> y(x.size());
    // The steps are the same on every ISA, and this one is fast.
    const IsaEntry isa = choose_isa(nullptr);
    for (size_t call = 1; call <= kParallelSteps * chunks; ++call) {
      FailingPool pool{call};
      const ThreadPool threads = pool.view();
      scratch.spoil();
      EXPECT_FALSE(LayerRun(layer, *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens));
      EXPECT_EQ(pool.calls, call) << isa.name;
    }
    FailingPool pool{kParallelSteps * chunks + 1};
    expect_same_bits(compute_in_chunks(layer, isa, x, tokens / chunks, pool.view()), compute(layer, isa, x), isa.name);
    EXPECT_EQ(pool.calls, kParallelSteps * chunks) << isa.name;
  }
}

TEST(Layer, PublicComputeReportsAFailureOfThePool) {
  Rng rng(18);
  const LayerTensors tensors({2, 1, kWideEnough, kWideEnough, false, "2bit", "int8"}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(40 * kWideEnough, rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(40, &bytes));
  Scratch scratch(bytes);
  std::vector<float> y(x.size());
  for (size_t call = 1; call <= kParallelSteps + 1; ++call) {
    scratch.spoil();
    FailingPool pool{call};
    EXPECT_EQ(layer.compute(x.data(), y.data(), 40, scratch.get(), pool.view()), call > kParallelSteps) << call;
  }
}

TEST(Layer, OneLayerServesSeveralCallersAtOnce) {
  Rng rng(15);
  const LayerTensors tensors({4, 2, 40, 50, false, "1.6bit", "int4", 32}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(7 * 40, rng);
  const std::vector<float> expected = tensors.expected(x);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (const IsaEntry& isa : supported_isas()) expect_same_bits(compute(layer, isa, x), expected, isa.name);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void expect_public_compute_matches(const Dimensions& d, size_t tokens, Rng& rng) {
  const LayerTensors tensors(d, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(tokens * static_cast<size_t>(d.hidden_size), rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(tokens, &bytes));
  const Scratch scratch(bytes);
  std::vector<float> y(x.size());
  ASSERT_TRUE(layer.compute(x.data(), y.data(), tokens, scratch.get(), {}));
  expect_same_bits(y, tensors.expected(x), isa_name());
}

TEST(Layer, PublicComputeUsesTheActiveIsa) {
  Rng rng(16);
  for (const Formats& formats : kFormats) expect_public_compute_matches(with_formats({4, 2, 40, 50}, formats), 5, rng);
}

TEST(Layer, PublicComputeCutsChunksWhereScratchWouldExceedItsBound) {
  Rng rng(22);
  const Dimensions d = {256, 256, 2, 3, true, "2bit", "bf16"};
  const LayerTensors tensors(d, rng);
  constexpr size_t kTokens = 400;
  size_t one = 0, all = 0;
  ASSERT_TRUE(tensors.create().scratch_size(1, &one));
  ASSERT_TRUE(tensors.create().scratch_size(kTokens, &all));
  ASSERT_LT(all, kTokens * one / 3 * 2) << "more tokens are needed to exceed the bound";
  expect_public_compute_matches(d, kTokens, rng);
}

TEST(ReferenceExp, IsWithinTwoUnitsInTheLastPlace) {
  for (float v = -87.0f; v <= 88.0f; v += 0.0037f) {
    const double exact = std::exp(static_cast<double>(v));
    const float nearest = static_cast<float>(exact);
    const double unit = std::nextafter(nearest, kInf) - nearest;
    ASSERT_LT(std::fabs(reference_exp(v) - exact), 2 * unit) << v;
  }
}

}  // namespace
}  // namespace mote::test
