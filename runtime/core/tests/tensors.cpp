#include "tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace mote::test {
namespace {

size_t count_of(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (const int64_t n : shape) count *= static_cast<size_t>(n);
  return count;
}

}  // namespace

Tensor::Tensor(std::vector<int64_t> tensor_shape, size_t element_bytes)
    : shape(std::move(tensor_shape)), bytes_(kOffset + count_of(shape) * element_bytes) {}

Tensor Tensor::random_bytes(std::vector<int64_t> shape, Rng& rng) {
  Tensor out(std::move(shape), 1);
  for (size_t i = 0; i < out.size();) {
    uint64_t bits = rng();
    for (size_t end = std::min(out.size(), i + sizeof(bits)); i < end; ++i, bits >>= 8) {
      out.data()[i] = static_cast<uint8_t>(bits);
    }
  }
  return out;
}

Tensor Tensor::random_floats(std::vector<int64_t> shape, float low, float high, Rng& rng) {
  Tensor out(std::move(shape), sizeof(float));
  std::uniform_real_distribution<float> uniform(low, high);
  for (size_t i = 0; i < out.size() / sizeof(float); ++i) out.set_float(i, uniform(rng));
  return out;
}

Tensor Tensor::random_bf16(std::vector<int64_t> shape, float low, float high, Rng& rng) {
  Tensor out(std::move(shape), sizeof(uint16_t));
  std::uniform_real_distribution<float> uniform(low, high);
  for (size_t i = 0; i < out.size() / sizeof(uint16_t); ++i) out.set_bits16(i, bf16_bits(uniform(rng)));
  return out;
}

Tensor Tensor::random_bf16_lines(std::vector<int64_t> shape, Rng& rng) {
  Tensor out(std::move(shape), 1);
  const std::vector<float> values = random_values(out.size() / sizeof(uint16_t), rng);
  for (size_t i = 0; i < values.size(); ++i) out.set_bits16(i, bf16_bits(values[i] / 8));
  return out;
}

TensorView Tensor::view() const {
  if (is_absent()) return {};
  return {data(), shape.data(), shape.size()};
}

void Tensor::set_float(size_t index, float value) {
  std::memcpy(data() + index * sizeof(value), &value, sizeof(value));
}

float Tensor::get_float(size_t index) const {
  float value;
  std::memcpy(&value, data() + index * sizeof(value), sizeof(value));
  return value;
}

void Tensor::set_bits16(size_t index, uint16_t bits) {
  std::memcpy(data() + index * sizeof(bits), &bits, sizeof(bits));
}

uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
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

int64_t line_inputs_of(const std::string& format) {
  if (format == "2bit") return 16;
  if (format == "1.6bit") return 20;
  if (format == "int4") return 8;
  return format == "int8" ? 4 : 2;
}

int64_t ceil_div_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::vector<IsaEntry> supported_isas() {
  size_t count = 0;
  const IsaEntry* entries = isa_entries(&count);
  std::vector<IsaEntry> out;
  for (size_t i = 0; i < count; ++i) {
    if (entries[i].is_supported()) out.push_back(entries[i]);
  }
  return out;
}

Scratch::Scratch(size_t bytes) : bytes_(bytes), memory_(std::aligned_alloc(64, bytes), &std::free) { spoil(); }

void Scratch::spoil() { std::memset(memory_.get(), 0xa5, bytes_); }

bool FailingPool::run(void* self_pointer, void (*task)(void*, size_t), size_t count, void* arg) {
  auto* self = static_cast<FailingPool*>(self_pointer);
  const bool fails = ++self->calls == self->failing_call;
  for (size_t i = 0; i < (fails ? count / 2 : count); ++i) task(arg, i);
  return !fails;
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
