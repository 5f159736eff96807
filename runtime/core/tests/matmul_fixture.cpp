#include "matmul_fixture.h"

#include <gtest/gtest.h>

#include <string>

#include "matmul_run.h"
#include "reference.h"

namespace mote::test {

MatMulTensors::MatMulTensors(int64_t in_features, int64_t out_features, const char* packing, Rng& rng) {
  config.in_features = in_features;
  config.out_features = out_features;
  config.packing = packing;
  config.layout_version = 1;
  const int64_t lines = ceil_div_of(in_features, line_inputs_of(packing));
  packed = Tensor::random_bytes({ceil_div_of(out_features, 16), lines, 64}, rng);
  scale = Tensor::random_floats({1}, 0.0f, 0.1f, rng);
}

TernaryMatMul MatMulTensors::create() const {
  TernaryMatMul layer;
  const Status status = TernaryMatMul::create(config, weights(), &layer);
  EXPECT_TRUE(status.is_ok()) << status.message();
  return layer;
}

std::vector<float> MatMulTensors::expected(const std::vector<float>& x) const {
  const auto in = static_cast<size_t>(config.in_features), out = static_cast<size_t>(config.out_features);
  const size_t tokens = x.size() / in;
  std::vector<float> y(tokens * out);
  reference_matmul({in, out, config.packing, packed.data(), scale.data()}, x.data(), y.data(), tokens);
  return y;
}

QuantizedMatMulTensors::QuantizedMatMulTensors(int64_t in_features, int64_t out_features, const char* format,
                                               int64_t group_size, bool has_bias, Rng& rng) {
  config.in_features = in_features;
  config.out_features = out_features;
  config.format = format;
  config.group_size = group_size;
  config.layout_version = 1;
  const std::vector<int64_t> shape = {ceil_div_of(out_features, 16), ceil_div_of(in_features, line_inputs_of(format)), 64};
  const bool is_float = std::string(format) == "bf16";
  weight = is_float ? Tensor::random_bf16_lines(shape, rng) : Tensor::random_bytes(shape, rng);
  if (!is_float) {
    const int64_t groups = group_size == 0 ? 1 : ceil_div_of(in_features, group_size);
    scale = Tensor::random_bf16({shape[0], groups, 16}, 0.0f, 0.1f, rng);
  }
  if (has_bias) bias = Tensor::random_floats({out_features}, -3.0f, 3.0f, rng);
}

QuantizedMatMul QuantizedMatMulTensors::create() const {
  QuantizedMatMul layer;
  const Status status = QuantizedMatMul::create(config, weights(), &layer);
  EXPECT_TRUE(status.is_ok()) << status.message();
  return layer;
}

std::vector<float> QuantizedMatMulTensors::expected(const std::vector<float>& x) const {
  const auto in = static_cast<size_t>(config.in_features), out = static_cast<size_t>(config.out_features);
  const size_t tokens = x.size() / in;
  std::vector<float> y(tokens * out);
  reference_quantized_matmul(
      {in, out, config.format, static_cast<size_t>(config.group_size), weight.data(), scale.data(), bias.data()},
      x.data(), y.data(), tokens);
  return y;
}

std::vector<float> compute_in_chunks(const PackedMatrix& matrix, const IsaEntry& isa, const std::vector<float>& x,
                                     size_t tokens_per_chunk, const ThreadPool& threads) {
  const size_t tokens = x.size() / static_cast<size_t>(matrix.in_features);
  std::vector<float> y(tokens * static_cast<size_t>(matrix.out_features));
  if (tokens == 0) return y;
  MatMulScratch plan;
  if (!MatMulRun::plan_scratch(matrix, tokens_per_chunk, &plan)) {
    ADD_FAILURE() << "scratch does not fit";
    return y;
  }
  const Scratch scratch(plan.total_bytes);
  EXPECT_TRUE(MatMulRun(matrix, *isa.kernels, plan, scratch.get(), threads).run(x.data(), y.data(), tokens));
  return y;
}

}  // namespace mote::test
