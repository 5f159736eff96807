// The ternary linear layer on every instruction set against the reference, bit for bit.
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
constexpr const char* kPackings[] = {"2bit", "1.6bit"};

std::string describe(const MatMulTensors& tensors, size_t tokens) {
  return "K=" + std::to_string(tensors.config.in_features) + " N=" + std::to_string(tensors.config.out_features) + " " +
         tensors.config.packing + " tokens=" + std::to_string(tokens);
}

void expect_all_isas_match(const MatMulTensors& tensors, const std::vector<float>& x) {
  const size_t tokens = x.size() / static_cast<size_t>(tensors.config.in_features);
  const std::vector<float> expected = tensors.expected(x);
  for (const IsaEntry& isa : supported_isas()) {
    expect_same_bits(compute_in_chunks(tensors.create(), isa, x, tokens), expected,
                     describe(tensors, tokens) + " on " + isa.name);
  }
}

TEST(MatMul, MatchesReferenceForEveryShape) {
  Rng rng(1);
  for (const char* packing : kPackings) {
    for (int64_t in : {1, 15, 16, 17, 19, 20, 21, 100, 160, 161, 336}) {
      for (int64_t out : {1, 15, 16, 17, 50}) {
        const MatMulTensors tensors(in, out, packing, rng);
        for (size_t tokens : {1, 2, 15, 16, 17, 33, 100}) {
          expect_all_isas_match(tensors, random_values(tokens * static_cast<size_t>(in), rng));
        }
      }
    }
    const MatMulTensors wide(8960, 1536, packing, rng);
    expect_all_isas_match(wide, random_values(2 * 8960, rng));
  }
}

TEST(MatMul, NoTokensIsNoWork) {
  Rng rng(2);
  const MatMulTensors tensors(20, 30, "2bit", rng);
  const TernaryMatMul layer = tensors.create();
  size_t bytes = 1;
  EXPECT_TRUE(layer.scratch_size(0, &bytes));
  EXPECT_EQ(bytes, 0u);
  EXPECT_TRUE(layer.compute(nullptr, nullptr, 0, nullptr, {}));
}

TEST(MatMul, RowsThatAreNotFiniteAreNanAndLeaveOthersAlone) {
  Rng rng(3);
  for (const char* packing : kPackings) {
    const MatMulTensors tensors(35, 18, packing, rng);
    std::vector<float> x = random_values(20 * 35, rng);
    x[0 * 35 + 34] = kNan;
    x[3 * 35 + 0] = kInf;
    x[5 * 35 + 16] = -kInf;
    x[19 * 35 + 20] = -kNan;
    expect_all_isas_match(tensors, x);
  }
}

TEST(MatMul, ScalesFromZeroToOverflow) {
  Rng rng(4);
  for (const char* packing : kPackings) {
    for (float scale : {0.0f, -0.0f, 1e-45f, 1e-38f, 1.0f, 3e38f}) {
      for (float magnitude : {0.0f, 1e-30f, 1.0f, 1e5f, 1e38f}) {
        MatMulTensors tensors(40, 33, packing, rng);
        tensors.scale.set_float(0, scale);
        // A step that overflows times a sum of 0 is NaN.
        const uint8_t zeros = packing[0] == '2' ? 0x55 : 121;
        std::fill_n(tensors.packed.data(), 64 * static_cast<size_t>(tensors.packed.shape[1]), zeros);
        std::vector<float> x = random_values(3 * 40, rng);
        for (float& value : x) value *= magnitude;
        expect_all_isas_match(tensors, x);
      }
    }
  }
}

TEST(MatMul, ChunksThreadsAndOrderChangeNothing) {
  Rng rng(5);
  for (const char* packing : kPackings) {
    const MatMulTensors tensors(260, 330, packing, rng);
    const TernaryMatMul layer = tensors.create();
    for (size_t tokens : {1, 15, 100}) {
      const std::vector<float> x = random_values(tokens * 260, rng);
      const std::vector<float> expected = tensors.expected(x);
      for (const IsaEntry& isa : supported_isas()) {
        for (size_t threads = 1; threads <= 8; ++threads) {
          RandomOrderPool pool(threads, rng());
          const size_t chunk = std::min<size_t>(tokens, 20 * threads);
          expect_same_bits(compute_in_chunks(layer, isa, x, chunk, pool.view()), expected,
                           describe(tensors, tokens) + " " + isa.name + " threads=" + std::to_string(threads));
        }
      }
    }
  }
}

TEST(MatMul, NothingFollowsAFailureOfThePool) {
  Rng rng(6);
  // Each of the two steps of a chunk has several tasks.
  const size_t tokens = 80, chunks = 2, width = 1040, steps = 2;
  const MatMulTensors tensors(width, width, "1.6bit", rng);
  const TernaryMatMul layer = tensors.create();
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
    EXPECT_EQ(pool.calls, std::min(call, steps * chunks)) << isa.name;
  }
}

TEST(MatMul, PublicComputeUsesTheActiveIsaAndReportsAFailureOfThePool) {
  Rng rng(7);
  const size_t tokens = 40, width = 1040;
  const MatMulTensors tensors(width, width, "2bit", rng);
  const TernaryMatMul layer = tensors.create();
  const std::vector<float> x = random_values(tokens * width, rng);
  size_t bytes = 0;
  ASSERT_TRUE(layer.scratch_size(tokens, &bytes));
  const Scratch scratch(bytes);
  std::vector<float> y(x.size());
  for (size_t call = 1; call <= 2; ++call) {
    FailingPool pool{call};
    EXPECT_FALSE(layer.compute(x.data(), y.data(), tokens, scratch.get(), pool.view()));
  }
  ASSERT_TRUE(layer.compute(x.data(), y.data(), tokens, scratch.get(), {}));
  expect_same_bits(y, tensors.expected(x), isa_name());
}

}  // namespace
}  // namespace mote::test
