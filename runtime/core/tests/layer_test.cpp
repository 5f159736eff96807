// Every instruction set against the reference, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

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

struct Routing {
  int64_t num_experts, top_k;
};
constexpr Routing kRoutings[] = {{1, 1}, {4, 1}, {4, 2}, {5, 5}, {64, 1}, {64, 8}, {17, 17}, {16, 3}};

TEST(Layer, MatchesReferenceForEveryPairOfWidths) {
  Rng rng(1);
  size_t round = 0;
  // 160 and 161 inputs are 10 and 11 lines, the edge where AVX2 widens its sums.
  for (int64_t hidden : {1, 15, 16, 17, 64, 100, 160, 161}) {
    for (int64_t intermediate : {1, 15, 16, 17, 64, 100, 161, 336}) {
      for (size_t tokens : {1, 3}) {
        const Routing routing = kRoutings[round % std::size(kRoutings)];
        const bool normalize = round++ % 2 != 0;
        expect_all_isas_match({routing.num_experts, routing.top_k, hidden, intermediate, normalize}, tokens, rng);
      }
    }
  }
}

TEST(Layer, MatchesReferenceForEveryRouting) {
  Rng rng(2);
  for (const Routing& routing : kRoutings) {
    for (bool normalize : {false, true}) {
      for (size_t tokens : {1, 2, 17}) {
        expect_all_isas_match({routing.num_experts, routing.top_k, 40, 24, normalize}, tokens, rng);
      }
    }
  }
  expect_all_isas_match({256, 256, 17, 16, true}, 3, rng);
}

TEST(Layer, MatchesReferenceForEveryNumberOfTokens) {
  Rng rng(3);
  for (size_t tokens = 1; tokens <= 17; ++tokens) {
    expect_all_isas_match({1, 1, 48, 33, false}, tokens, rng);
    expect_all_isas_match({3, 2, 48, 33, true}, tokens, rng);
  }
  expect_all_isas_match({4, 1, 64, 48, false}, 128, rng);
}

TEST(Layer, ChunksOfAnySizeChangeNothing) {
  Rng rng(4);
  for (const Dimensions& d : {Dimensions{2, 1, 16, 16, false}, Dimensions{4, 2, 17, 20, true}}) {
    const LayerTensors tensors(d, rng);
    const std::vector<float> x = random_values(50 * static_cast<size_t>(d.hidden_size), rng);
    const std::vector<float> expected = tensors.expected(x);
    for (const IsaEntry& isa : supported_isas()) {
      for (size_t chunk : {1, 2, 7, 49, 50, 51}) {
        expect_same_bits(compute_in_chunks(tensors.create(), isa, x, chunk), expected,
                         to_string(d) + " " + isa.name + " chunk=" + std::to_string(chunk));
      }
    }
  }
}

TEST(Layer, MatchesReferenceAtRealWidths) {
  Rng rng(5);
  for (size_t tokens : {1, 9}) expect_all_isas_match({4, 1, 1536, 8960 / 8, false}, tokens, rng);
  expect_all_isas_match({2, 2, 64, 8960, true}, 2, rng);
}

TEST(Layer, NoTokensIsNoWork) {
  Rng rng(6);
  const TernaryMoE layer = LayerTensors({2, 1, 16, 16, false}, rng).create();
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
  const Dimensions d = {4, 2, 35, 18, true};
  const LayerTensors tensors(d, rng);
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
        LayerTensors tensors({2, 2, 24, 40, false}, rng);
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

TEST(Layer, InputsOfEveryMagnitude) {
  Rng rng(11);
  const LayerTensors tensors({3, 2, 50, 30, false}, rng);
  for (int exponent = -149; exponent <= 127; exponent += 12) {
    std::vector<float> x = random_values(2 * 50, rng);
    for (float& value : x) value = std::ldexp(value / 2.0f, exponent);
    expect_all_isas_match(tensors, x, "2^" + std::to_string(exponent));
  }
}

TEST(Layer, RoundsHalvesToEven) {
  Rng rng(12);
  const LayerTensors tensors({1, 1, 128, 16, false}, rng);
  std::vector<float> x(128);
  for (size_t k = 0; k < x.size(); ++k) x[k] = static_cast<float>(k) - 63.5f;
  x[0] = 127.0f;  // then s is exactly 1
  expect_all_isas_match(tensors, x, "halves");
}

TEST(Layer, AllTokensToOneExpert) {
  Rng rng(13);
  LayerTensors tensors({8, 1, 32, 32, false}, rng);
  for (size_t k = 0; k < 32; ++k) tensors.router.set_float(5 * 32 + k, 10.0f);
  std::vector<float> x = random_values(40 * 32, rng);
  for (float& value : x) value = std::fabs(value);
  expect_all_isas_match(tensors, x, "one expert");
}

TEST(Layer, ThreadsAndOrderChangeNothing) {
  Rng rng(14);
  for (const Dimensions& d : {Dimensions{4, 1, 130, 200, false}, Dimensions{6, 3, 64, 700, true}}) {
    const LayerTensors tensors(d, rng);
    const TernaryMoE layer = tensors.create();
    for (size_t tokens : {1, 13, 175}) {
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

/// Fails at one call, after the first half of its tasks.
struct FailingPool {
  size_t failing_call;
  size_t calls = 0;

  static bool run(void* self_pointer, void (*task)(void*, size_t), size_t count, void* arg) {
    auto* self = static_cast<FailingPool*>(self_pointer);
    const bool fails = ++self->calls == self->failing_call;
    for (size_t i = 0; i < (fails ? count / 2 : count); ++i) task(arg, i);
    return !fails;
  }
};

TEST(Layer, NothingFollowsAFailureOfThePool) {
  Rng rng(17);
  const size_t tokens = 40, chunks = 2;
  // Wide enough that each of the four steps of a chunk has several tasks.
  const LayerTensors tensors({4, 1, 1040, 1040, false}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(tokens * 1040, rng);
  ScratchLayout plan;
  ASSERT_TRUE(LayerRun::plan_scratch(layer, tokens / chunks, &plan));
  const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, plan.total_bytes), &std::free);
  std::vector<float> y(x.size());
  for (const IsaEntry& isa : supported_isas()) {
    for (size_t call = 1; call <= 4 * chunks; ++call) {
      FailingPool pool{call};
      const ThreadPool threads{FailingPool::run, &pool};
      // Numbers of experts, tokens and slots that lie far outside of every buffer.
      std::memset(scratch.get(), 0xa5, plan.total_bytes);
      EXPECT_FALSE(LayerRun(layer, *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens));
      EXPECT_EQ(pool.calls, call) << isa.name;
    }
    FailingPool pool{4 * chunks + 1};
    expect_same_bits(compute_in_chunks(layer, isa, x, tokens / chunks, {FailingPool::run, &pool}),
                     compute(layer, isa, x), isa.name);
    EXPECT_EQ(pool.calls, 4 * chunks) << isa.name;
  }
}

TEST(Layer, PublicComputeReportsAFailureOfThePool) {
  Rng rng(18);
  const LayerTensors tensors({2, 1, 1040, 1040, false}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(40 * 1040, rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(40, &bytes));
  const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);
  std::vector<float> y(x.size());
  for (size_t call = 1; call <= 5; ++call) {
    std::memset(scratch.get(), 0xa5, bytes);
    FailingPool pool{call};
    EXPECT_EQ(layer.compute(x.data(), y.data(), 40, scratch.get(), {FailingPool::run, &pool}), call == 5) << call;
  }
}

TEST(Layer, OneLayerServesSeveralCallersAtOnce) {
  Rng rng(15);
  const LayerTensors tensors({4, 2, 40, 50, false}, rng);
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

TEST(Layer, PublicComputeUsesTheActiveIsa) {
  Rng rng(16);
  const LayerTensors tensors({4, 2, 40, 50, false}, rng);
  const TernaryMoE layer = tensors.create();
  const std::vector<float> x = random_values(5 * 40, rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(5, &bytes));
  std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), &std::free);
  std::vector<float> y(x.size());
  ASSERT_TRUE(layer.compute(x.data(), y.data(), 5, scratch.get(), {}));
  expect_same_bits(y, tensors.expected(x), isa_name());
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
