// The linear layer of bf16, int8 and int4 weights on every instruction set against the reference, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "matmul_fixture.h"
#include "matmul_run.h"
#include "random_order_pool.h"

namespace mote::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Format {
  const char* name;
  int64_t group_size;
};
constexpr Format kFormats[] = {{"bf16", 0}, {"int8", 0}, {"int4", 32}, {"int4", 64}, {"int4", 128}};

std::string describe(const QuantizedMatMulTensors& tensors, size_t tokens) {
  const QuantizedMatMulConfig& config = tensors.config;
  return "K=" + std::to_string(config.in_features) + " N=" + std::to_string(config.out_features) + " " + config.format +
         " group=" + std::to_string(config.group_size) + " tokens=" + std::to_string(tokens) +
         (tensors.bias.is_absent() ? "" : " bias");
}

void expect_all_isas_match(const QuantizedMatMulTensors& tensors, const std::vector<float>& x) {
  const size_t tokens = x.size() / static_cast<size_t>(tensors.config.in_features);
  const std::vector<float> expected = tensors.expected(x);
  for (const IsaEntry& isa : supported_isas()) {
    expect_same_bits(compute_in_chunks(tensors.create(), isa, x, tokens), expected,
                     describe(tensors, tokens) + " on " + isa.name);
  }
}

TEST(QuantizedMatMul, MatchesReferenceForEveryShape) {
  Rng rng(1);
  for (const Format& format : kFormats) {
    for (int64_t in : {1, 7, 8, 9, 31, 32, 33, 65, 100, 128, 161}) {
      for (int64_t out : {1, 15, 16, 17, 50}) {
        const QuantizedMatMulTensors tensors(in, out, format.name, format.group_size, rng() % 2 == 0, rng);
        for (size_t tokens : {1, 2, 15, 17, 33}) {
          expect_all_isas_match(tensors, random_values(tokens * static_cast<size_t>(in), rng));
        }
      }
    }
    const QuantizedMatMulTensors wide(2048, 700, format.name, format.group_size, true, rng);
    expect_all_isas_match(wide, random_values(3 * 2048, rng));
  }
}

TEST(QuantizedMatMul, NoTokensIsNoWork) {
  Rng rng(2);
  const QuantizedMatMul layer = QuantizedMatMulTensors(20, 30, "int4", 32, true, rng).create();
  size_t bytes = 1;
  EXPECT_TRUE(layer.scratch_size(0, &bytes));
  EXPECT_EQ(bytes, 0u);
  EXPECT_TRUE(layer.compute(nullptr, nullptr, 0, nullptr, {}));
}

TEST(QuantizedMatMul, RowsThatAreNotFiniteAreNanAndLeaveOthersAlone) {
  Rng rng(3);
  for (const Format& format : kFormats) {
    for (const bool has_bias : {false, true}) {
      const QuantizedMatMulTensors tensors(35, 18, format.name, format.group_size, has_bias, rng);
      std::vector<float> x = random_values(20 * 35, rng);
      x[0 * 35 + 34] = kNan;
      x[3 * 35 + 0] = kInf;
      x[5 * 35 + 16] = -kInf;
      x[19 * 35 + 20] = -kNan;
      expect_all_isas_match(tensors, x);
    }
  }
}

TEST(QuantizedMatMul, ScalesBiasesAndValuesFromZeroToOverflow) {
  Rng rng(4);
  for (const Format& format : kFormats) {
    for (float scale : {0.0f, -0.0f, 1e-38f, 3e38f}) {
      for (float magnitude : {0.0f, 1e-30f, 1.0f, 1e38f}) {
        QuantizedMatMulTensors tensors(70, 33, format.name, format.group_size, true, rng);
        for (size_t i = 0; !tensors.scale.is_absent() && i < tensors.scale.size() / 2; i += 1 + rng() % 3) {
          tensors.scale.set_bits16(i, bf16_bits(scale));
        }
        tensors.bias.set_float(0, -0.0f);
        tensors.bias.set_float(1, -3e38f);
        std::vector<float> x = random_values(3 * 70, rng);
        for (float& value : x) value *= magnitude;
        expect_all_isas_match(tensors, x);
      }
    }
  }
}

/// Weights that no export writes: NaN and infinity among those of bf16, also in the padding of an odd K.
TEST(QuantizedMatMul, DamagedFloatWeightsGiveTheSameAnswerEverywhere) {
  Rng rng(5);
  for (int64_t in : {8, 9}) {
    QuantizedMatMulTensors tensors(in, 40, "bf16", 0, true, rng);
    tensors.weight = Tensor::random_bytes(tensors.weight.shape, rng);
    expect_all_isas_match(tensors, random_values(20 * static_cast<size_t>(in), rng));
  }
}

TEST(QuantizedMatMul, ChunksThreadsAndOrderChangeNothing) {
  Rng rng(6);
  for (const Format& format : kFormats) {
    const QuantizedMatMulTensors tensors(260, 330, format.name, format.group_size, true, rng);
    const QuantizedMatMul layer = tensors.create();
    for (size_t tokens : {1, 15, 100}) {
      const std::vector<float> x = random_values(tokens * 260, rng);
      const std::vector<float> expected = tensors.expected(x);
      for (const IsaEntry& isa : supported_isas()) {
        for (size_t threads : {1, 2, 5}) {
          RandomOrderPool pool(threads, rng());
          const size_t chunk = std::min<size_t>(tokens, 20 * threads);
          expect_same_bits(compute_in_chunks(layer, isa, x, chunk, pool.view()), expected,
                           describe(tensors, tokens) + " " + isa.name + " threads=" + std::to_string(threads));
        }
      }
    }
  }
}

TEST(QuantizedMatMul, NothingFollowsAFailureOfThePool) {
  Rng rng(7);
  const size_t tokens = 80, chunks = 2, width = 1040, steps = 2;
  for (const Format& format : kFormats) {
    const QuantizedMatMulTensors tensors(width, width, format.name, format.group_size, true, rng);
    const QuantizedMatMul layer = tensors.create();
    const std::vector<float> x = random_values(tokens * width, rng);
    MatMulScratch plan;
    ASSERT_TRUE(MatMulRun::plan_scratch(layer.matrix(), tokens / chunks, &plan));
    Scratch scratch(plan.total_bytes);
    std::vector<float> y(x.size());
    const IsaEntry isa = choose_isa(nullptr);
    for (size_t call = 1; call <= steps * chunks + 1; ++call) {
      FailingPool pool{call};
      const ThreadPool threads = pool.view();
      scratch.spoil();
      EXPECT_EQ(MatMulRun(layer.matrix(), *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens),
                call > steps * chunks);
      EXPECT_EQ(pool.calls, std::min(call, steps * chunks)) << describe(tensors, tokens) << " " << isa.name;
    }
  }
}

TEST(QuantizedMatMul, PublicComputeUsesTheActiveIsa) {
  Rng rng(8);
  const QuantizedMatMulTensors tensors(300, 50, "int4", 64, true, rng);
  const QuantizedMatMul layer = tensors.create();
  const std::vector<float> x = random_values(3 * 300, rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(3, &bytes));
  const Scratch scratch(bytes);
  std::vector<float> y(3 * 50);
  ASSERT_TRUE(layer.compute(x.data(), y.data(), 3, scratch.get(), {}));
  expect_same_bits(y, tensors.expected(x), isa_name());
}

}  // namespace
}  // namespace mote::test
