// Calls the kernel as ExecuTorch's interpreter does, with what no exporter writes: a damaged program must be an error.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>
#include <executorch/runtime/platform/runtime.h>

namespace {

/// Of the pool below: the call that fails, counted from 1, and the calls so far.
size_t failing_parallel_call = 0;
size_t parallel_calls = 0;

}  // namespace

/// In place of the library's, which fails only for a range that the plugin never passes. Like that, it cuts the range
/// into pieces, here three for as many threads, of which the last one begins first.
bool executorch::extension::parallel_for(const int64_t begin, const int64_t end, const int64_t /* grain_size */,
                                         executorch::runtime::FunctionRef<void(int64_t, int64_t)> run) {
  if (++parallel_calls == failing_parallel_call) return false;
  const int64_t size = (end - begin + 2) / 3;
  std::vector<std::thread> threads;
  for (int64_t first = begin + 2 * size; first >= begin && size > 0; first -= size) {
    if (first < end) threads.emplace_back([=] { run(first, std::min(end, first + size)); });
  }
  for (std::thread& thread : threads) thread.join();
  return true;
}

namespace {

using executorch::aten::ScalarType;
using executorch::aten::TensorImpl;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::MemoryAllocator;
using executorch::runtime::TensorShapeDynamism;
using EtTensor = executorch::aten::Tensor;

/// A tensor with its own memory and shape.
class OwnedTensor {
 public:
  /// `shift`: how many bytes the values lie beside an address that suits every type.
  OwnedTensor(ScalarType type, std::vector<TensorImpl::SizesType> sizes, uint8_t fill,
              TensorShapeDynamism dynamism = TensorShapeDynamism::STATIC, size_t shift = 0)
      : sizes_(std::move(sizes)), dim_order_(sizes_.size()), strides_(sizes_.size()) {
    TensorImpl::StridesType stride = 1;
    for (size_t i = sizes_.size(); i-- > 0;) {
      dim_order_[i] = static_cast<TensorImpl::DimOrderType>(i);
      strides_[i] = stride;
      stride *= sizes_[i];
    }
    data_.assign(static_cast<size_t>(stride) * (type == ScalarType::Byte ? 1 : sizeof(double)) + shift, fill);
    impl_.emplace_back(type, static_cast<ssize_t>(sizes_.size()), sizes_.data(), data_.data() + shift,
                       dim_order_.data(), strides_.data(), dynamism);
  }

  EValue value() { return EValue(EtTensor(&impl_[0])); }
  void reverse_dim_order() { std::swap(dim_order_.front(), dim_order_.back()); }
  void drop_memory() { impl_[0].set_data(nullptr); }
  float* floats() { return reinterpret_cast<float*>(data_.data()); }
  const std::vector<uint8_t>& bytes() const { return data_; }

 private:
  std::vector<TensorImpl::SizesType> sizes_;
  std::vector<TensorImpl::DimOrderType> dim_order_;
  std::vector<TensorImpl::StridesType> strides_;
  std::vector<uint8_t> data_;
  std::vector<TensorImpl> impl_;  // of one; made after what it points to
};

using Sizes = std::vector<TensorImpl::SizesType>;

/// The call of a sound program; a test spoils one thing. x comes first, out last.
class Kernel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { executorch::runtime::runtime_init(); }

  Kernel(const char* name, Sizes x, Sizes out)
      : x_(ScalarType::Float, std::move(x), 0), out_(ScalarType::Float, std::move(out), 0xff), name_(name) {
    failing_parallel_call = parallel_calls = 0;
  }

  Error call() { return call(arguments_.size()); }

  Error call(size_t num_arguments) {
    std::vector<EValue*> stack;
    for (size_t i = 0; i < num_arguments; ++i) stack.push_back(&arguments_[i]);
    const auto kernel = executorch::runtime::get_op_function_from_registry(name_);
    EXPECT_TRUE(kernel.ok());
    std::vector<uint8_t> memory(temp_size_, 0xa5);
    MemoryAllocator allocator(static_cast<uint32_t>(memory.size()), memory.data());
    KernelRuntimeContext context(nullptr, temp_size_ > 0 ? &allocator : nullptr);
    (*kernel)(context, {stack.data(), stack.size()});
    return context.failure_state();
  }

  /// What the call writes to the log beside its result.
  std::string log_of_failing_call() {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(call(), Error::InvalidArgument);
    return ::testing::internal::GetCapturedStderr();
  }

  void set_tokens(Sizes x, Sizes out, ScalarType type = ScalarType::Float) {
    x_ = OwnedTensor(type, std::move(x), 0);
    out_ = OwnedTensor(ScalarType::Float, std::move(out), 0xff);
    arguments_.front() = x_.value();
    arguments_.back() = out_.value();
  }

  void expect_zeros(size_t count) {
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(out_.floats()[i], 0.0f) << i;
  }

  void expect_that_other_types_are_refused() {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const EValue right = arguments_[i];
      for (const EValue& wrong : {EValue(), EValue(0.5), right.isInt() ? EValue(true) : EValue(int64_t{1})}) {
        if (wrong.isNone() && right.isNone()) continue;
        arguments_[i] = wrong;
        EXPECT_EQ(call(), Error::InvalidArgument) << "argument " << i;
      }
      arguments_[i] = right;
    }
    EXPECT_EQ(call(), Error::Ok);
    for (size_t count = 0; count < arguments_.size(); ++count) EXPECT_EQ(call(count), Error::InvalidArgument) << count;
  }

  size_t temp_size_ = 1 << 16;
  OwnedTensor x_;
  OwnedTensor out_;
  std::vector<EValue> arguments_;

 private:
  const char* name_;
};

/// One expert of zeros, two tokens, and no shared expert.
class TernaryMoE : public Kernel {
 protected:
  static constexpr size_t kSharedGateUp = 6, kLayoutVersion = 16, kSharedFormat = 17, kSharedGroupSize = 18;

  TernaryMoE() : Kernel("mote::ternary_moe.out", {2, 20}, {2, 20}) {
    arguments_ = {x_.value(),
                  router_.value(),
                  gate_up_packed_.value(),
                  gate_up_scale_.value(),
                  down_packed_.value(),
                  down_scale_.value(),
                  EValue(),
                  EValue(),
                  EValue(),
                  EValue(),
                  EValue(int64_t{1}),
                  EValue(int64_t{1}),
                  EValue(false),
                  EValue(int64_t{16}),
                  EValue(&activation_),
                  EValue(&packing_),
                  EValue(int64_t{1}),
                  EValue(&shared_format_),
                  EValue(int64_t{0}),
                  out_.value()};
  }

  void set_int4_shared_expert() {
    shared_format_ = {"int4", 4};
    arguments_[kSharedGateUp] = shared_gate_up_.value();
    arguments_[kSharedGateUp + 1] = shared_gate_up_scale_.value();
    arguments_[kSharedGateUp + 2] = shared_down_.value();
    arguments_[kSharedGateUp + 3] = shared_down_scale_.value();
    arguments_[kSharedGroupSize] = EValue(int64_t{32});
  }

  OwnedTensor router_{ScalarType::Float, {1, 20}, 0};
  OwnedTensor gate_up_packed_{ScalarType::Byte, {1, 1, 2, 2, 64}, 0x55};
  OwnedTensor gate_up_scale_{ScalarType::Float, {1, 2}, 0};
  OwnedTensor down_packed_{ScalarType::Byte, {1, 2, 1, 64}, 0x55};
  OwnedTensor down_scale_{ScalarType::Float, {1}, 0};
  OwnedTensor shared_gate_up_{ScalarType::Byte, {1, 2, 3, 64}, 0x88};
  OwnedTensor shared_gate_up_scale_{ScalarType::BFloat16, {1, 2, 1, 16}, 0};
  OwnedTensor shared_down_{ScalarType::Byte, {2, 2, 64}, 0x88};
  OwnedTensor shared_down_scale_{ScalarType::BFloat16, {2, 1, 16}, 0};
  executorch::aten::ArrayRef<char> activation_{"silu", 4};
  executorch::aten::ArrayRef<char> packing_{"2bit", 4};
  executorch::aten::ArrayRef<char> shared_format_{"none", 4};
};

TEST_F(TernaryMoE, ASoundCallWritesEveryValue) {
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(40);
  set_tokens({2, 20}, {2, 20});
  set_int4_shared_expert();
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(40);
}

TEST_F(TernaryMoE, NoTokensAreNoError) {
  for (const Sizes& sizes : {Sizes{0, 20}, {1, 0, 20}, {3, 0, 2, 20}}) {
    set_tokens(sizes, sizes);
    EXPECT_EQ(call(), Error::Ok);
  }
}

TEST_F(TernaryMoE, EveryArgumentOfAnotherTypeIsRefused) { expect_that_other_types_are_refused(); }

TEST_F(TernaryMoE, EveryArgumentOfAnotherTypeIsRefusedBesideASharedExpert) {
  set_int4_shared_expert();
  expect_that_other_types_are_refused();
}

TEST_F(TernaryMoE, WeightsOfAnotherDtypeAreRefused) {
  set_int4_shared_expert();
  for (size_t i = 0; i < 4; ++i) {
    OwnedTensor wrong(ScalarType::Half, {1, 2, 3, 64}, 0);
    const EValue right = arguments_[kSharedGateUp + i];
    arguments_[kSharedGateUp + i] = wrong.value();
    const std::string expected = i % 2 == 0 ? "has dtype Half, expected Byte" : "has dtype Half, expected BFloat16";
    EXPECT_NE(log_of_failing_call().find(expected), std::string::npos) << i;
    arguments_[kSharedGateUp + i] = right;
  }
}

TEST_F(TernaryMoE, AWeightWithoutMemoryIsRefused) {
  set_int4_shared_expert();
  shared_gate_up_.drop_memory();
  EXPECT_NE(log_of_failing_call().find("shared_gate_up has no data"), std::string::npos);
}

TEST_F(TernaryMoE, AWeightOfNoValuesIsNotAnAbsentOne) {
  set_int4_shared_expert();
  OwnedTensor empty(ScalarType::Byte, {0, 2, 3, 64}, 0);
  arguments_[kSharedGateUp] = empty.value();
  EXPECT_NE(log_of_failing_call().find("shared_gate_up has size 0 in dimension 0"), std::string::npos);
  for (size_t i = 1; i < 4; ++i) arguments_[kSharedGateUp + i] = EValue();
  shared_format_ = {"none", 4};
  arguments_[kSharedGroupSize] = EValue(int64_t{0});
  EXPECT_EQ(call(), Error::InvalidArgument);
}

TEST_F(TernaryMoE, WeightsMayLieAtAnyAddress) {
  const auto shifted = [](ScalarType type, Sizes sizes, uint8_t fill) {
    return OwnedTensor(type, std::move(sizes), fill, TensorShapeDynamism::STATIC, 1);
  };
  // Bytes that are no zeros: as float32 and bfloat16, 0x3c3c3c3c and 0x3c3c are small numbers.
  std::vector<OwnedTensor> at_odd, at_even;
  for (const bool is_odd : {false, true}) {
    std::vector<OwnedTensor>& tensors = is_odd ? at_odd : at_even;
    const auto add = [&](ScalarType type, const Sizes& sizes, uint8_t fill) {
      tensors.push_back(is_odd ? shifted(type, sizes, fill) : OwnedTensor(type, sizes, fill));
    };
    add(ScalarType::Float, {1, 20}, 0x3c);
    add(ScalarType::Byte, {1, 1, 2, 2, 64}, 0x99);
    add(ScalarType::Float, {1, 2}, 0x3c);
    add(ScalarType::Byte, {1, 2, 1, 64}, 0x99);
    add(ScalarType::Float, {1}, 0x3c);
    add(ScalarType::Byte, {1, 2, 3, 64}, 0x3c);
    add(ScalarType::BFloat16, {1, 2, 1, 16}, 0x3c);
    add(ScalarType::Byte, {2, 2, 64}, 0x3c);
    add(ScalarType::BFloat16, {2, 1, 16}, 0x3c);
  }
  set_int4_shared_expert();
  for (int i = 0; i < 40; ++i) x_.floats()[i] = 0.25f * static_cast<float>(i % 7) - 0.5f;
  std::vector<std::vector<uint8_t>> results;
  for (std::vector<OwnedTensor>* tensors : {&at_even, &at_odd}) {
    for (size_t i = 0; i < tensors->size(); ++i) arguments_[1 + i] = (*tensors)[i].value();
    ASSERT_EQ(call(), Error::Ok);
    results.push_back(out_.bytes());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_NE(out_.floats()[0], 0.0f);
}

TEST_F(TernaryMoE, TensorsThatAreNotContiguousAreRefused) {
  set_int4_shared_expert();
  for (OwnedTensor* tensor : {&x_, &out_, &router_, &gate_up_packed_, &gate_up_scale_, &down_packed_, &shared_gate_up_,
                              &shared_gate_up_scale_, &shared_down_, &shared_down_scale_}) {
    tensor->reverse_dim_order();
    EXPECT_EQ(call(), Error::InvalidArgument);
    tensor->reverse_dim_order();
  }
  EXPECT_EQ(call(), Error::Ok);
}

TEST_F(TernaryMoE, TokensOfAWrongShapeOrTypeAreRefused) {
  for (const Sizes& sizes : {Sizes{}, {2, 19}, {2, 0}, {1, 1, 1, 2, 20}}) {
    set_tokens(sizes, sizes);
    EXPECT_EQ(call(), Error::InvalidArgument);
  }
  set_tokens({2, 20}, {2, 20}, ScalarType::Double);
  EXPECT_EQ(call(), Error::InvalidArgument);
}

TEST_F(TernaryMoE, AnOutputOfAnotherShapeIsRefused) {
  set_tokens({2, 20}, {3, 20});
  EXPECT_EQ(call(), Error::InvalidArgument);
}

TEST_F(TernaryMoE, TooLittleTemporaryMemoryIsRefused) {
  for (const size_t size : {0, 1, 64}) {
    temp_size_ = size;
    EXPECT_EQ(call(), Error::InvalidArgument) << size;
  }
}

TEST_F(TernaryMoE, AFailureOfThePoolIsAnErrorAndNothingFollowsIt) {
  temp_size_ = 64 << 20;
  set_tokens({2000, 20}, {2000, 20});  // enough that tokens, and values of h, are several tasks
  set_int4_shared_expert();
  ASSERT_EQ(call(), Error::Ok);
  const size_t calls = parallel_calls;
  EXPECT_GE(calls, 2u);
  for (size_t call = 1; call <= calls; ++call) {
    failing_parallel_call = call;
    parallel_calls = 0;
    EXPECT_EQ(this->call(), Error::InvalidArgument);
    EXPECT_EQ(parallel_calls, call);
  }
  failing_parallel_call = 0;
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(2000 * 20);
}

TEST_F(TernaryMoE, LongStringsAndForeignVersionsAreRefused) {
  const std::vector<char> text(1000, 's');
  for (auto* word : {&activation_, &packing_, &shared_format_}) {
    const auto right = *word;
    *word = {text.data(), text.size()};
    EXPECT_EQ(call(), Error::InvalidArgument);
    *word = right;
  }
  activation_ = {"silu2", 4};  // its end is its length, not a zero
  EXPECT_EQ(call(), Error::Ok);
  arguments_[kLayoutVersion] = EValue(int64_t{2});
  EXPECT_EQ(call(), Error::InvalidArgument);
}

class TernaryMatMul : public Kernel {
 protected:
  TernaryMatMul() : Kernel("mote::ternary_matmul.out", {2, 40}, {2, 21}) {
    arguments_ = {x_.value(),          packed_.value(), scale_.value(),     EValue(int64_t{40}),
                  EValue(int64_t{21}), EValue(&packing_), EValue(int64_t{1}), out_.value()};
  }

  OwnedTensor packed_{ScalarType::Byte, {2, 2, 64}, 121};
  OwnedTensor scale_{ScalarType::Float, {1}, 0};
  executorch::aten::ArrayRef<char> packing_{"1.6bit", 6};
};

TEST_F(TernaryMatMul, ASoundCallWritesEveryValue) {
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(42);
  set_tokens({40}, {21});
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(21);
  set_tokens({2, 1, 3, 40}, {2, 1, 3, 21});
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(6 * 21);
}

TEST_F(TernaryMatMul, NoTokensAreNoError) {
  set_tokens({2, 0, 40}, {2, 0, 21});
  EXPECT_EQ(call(), Error::Ok);
}

TEST_F(TernaryMatMul, EveryArgumentOfAnotherTypeIsRefused) { expect_that_other_types_are_refused(); }

TEST_F(TernaryMatMul, ErrorsCarryItsName) {
  set_tokens({2, 39}, {2, 21});
  const char* sentence = "mote::ternary_matmul.out: the last dimension of x is 39, expected 40, in_features";
  EXPECT_NE(log_of_failing_call().find(sentence), std::string::npos);
  set_tokens({2, 40}, {2, 40});
  EXPECT_NE(log_of_failing_call().find("out cannot take the shape of y, 2 rows of 21"), std::string::npos);
}

class QuantizedMatMul : public Kernel {
 protected:
  QuantizedMatMul() : Kernel("mote::quantized_matmul.out", {2, 40}, {2, 21}) {
    arguments_ = {x_.value(),          weight_.value(),     scale_.value(),    bias_.value(),     EValue(int64_t{40}),
                  EValue(int64_t{21}), EValue(&format_), EValue(int64_t{32}), EValue(int64_t{1}), out_.value()};
  }

  OwnedTensor weight_{ScalarType::Byte, {2, 5, 64}, 0x88};
  OwnedTensor scale_{ScalarType::BFloat16, {2, 2, 16}, 0};
  OwnedTensor bias_{ScalarType::Float, {21}, 0};
  executorch::aten::ArrayRef<char> format_{"int4", 4};
};

TEST_F(QuantizedMatMul, ASoundCallWritesEveryValue) {
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(42);
  set_tokens({2, 1, 3, 40}, {2, 1, 3, 21});
  ASSERT_EQ(call(), Error::Ok);
  expect_zeros(6 * 21);
}

TEST_F(QuantizedMatMul, ABiasMayBeNoneButNotTheScaleOfInt4) {
  arguments_[3] = EValue(0.5);
  EXPECT_EQ(call(), Error::InvalidArgument);
  arguments_[3] = EValue();
  ASSERT_EQ(call(), Error::Ok);
  arguments_[2] = EValue();
  EXPECT_NE(log_of_failing_call().find("mote::quantized_matmul.out: scale is missing"), std::string::npos);
}

TEST_F(QuantizedMatMul, EveryArgumentOfAnotherTypeIsRefused) {
  arguments_[3] = EValue();  // the bias, which may be one type more
  expect_that_other_types_are_refused();
}

}  // namespace
