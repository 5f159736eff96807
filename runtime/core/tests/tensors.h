// Random tensors of an operator, and what the tests of both operators share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "mote/runtime.h"

namespace mote::test {

using Rng = std::mt19937_64;

/// A tensor that begins at an odd address and ends where its heap block ends, so neither alignment nor bytes beyond
/// it can be relied upon. One made without a shape is absent: it has no data.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::vector<int64_t> shape, size_t element_bytes);

  static Tensor random_bytes(std::vector<int64_t> shape, Rng& rng);
  static Tensor random_floats(std::vector<int64_t> shape, float low, float high, Rng& rng);
  static Tensor random_bf16(std::vector<int64_t> shape, float low, float high, Rng& rng);
  /// Lines of bf16 weights: finite, of many magnitudes, in the padding as well.
  static Tensor random_bf16_lines(std::vector<int64_t> shape, Rng& rng);

  bool is_absent() const { return bytes_.empty(); }
  uint8_t* data() { return bytes_.data() + kOffset; }
  const uint8_t* data() const { return is_absent() ? nullptr : bytes_.data() + kOffset; }
  size_t size() const { return bytes_.size() - kOffset; }
  TensorView view() const;

  void set_float(size_t index, float value);
  float get_float(size_t index) const;
  void set_bits16(size_t index, uint16_t bits);

  std::vector<int64_t> shape;

 private:
  static constexpr size_t kOffset = 1;
  std::vector<uint8_t> bytes_;
};

/// The bfloat16 that a float is cut off to.
uint16_t bf16_bits(float value);

/// Values of many magnitudes: ordinary, zero, denormal, small.
std::vector<float> random_values(size_t count, Rng& rng);

/// C of docs/layout.md, for shapes.
int64_t line_inputs_of(const std::string& format);

int64_t ceil_div_of(int64_t a, int64_t b);

/// The instruction sets that this machine can run.
std::vector<IsaEntry> supported_isas();

/// Scratch memory full of rubbish: numbers of experts, tokens and slots in it lie far outside of every buffer.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  void* get() const { return memory_.get(); }
  void spoil();

 private:
  size_t bytes_;
  std::unique_ptr<void, decltype(&std::free)> memory_;
};

/// A pool of no threads that fails at one call, after the first half of its tasks.
struct FailingPool {
  size_t failing_call;
  size_t calls = 0;

  ThreadPool view() { return {&FailingPool::run, this}; }
  static bool run(void* self_pointer, void (*task)(void*, size_t), size_t count, void* arg);
};

/// Fails the test unless both have the same bits.
void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what);

}  // namespace mote::test
