// Calls the kernel as ExecuTorch's interpreter does, with what no exporter writes: a damaged program must be an error.
#include <gtest/gtest.h>

#include <cstdint>
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

/// In place of the library's, which fails only for a range that the plugin never passes.
bool executorch::extension::parallel_for(const int64_t begin, const int64_t end, const int64_t /* grain_size */,
                                         executorch::runtime::FunctionRef<void(int64_t, int64_t)> run) {
  if (++parallel_calls == failing_parallel_call) return false;
  for (int64_t i = end; i-- > begin;) run(i, i + 1);
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
  OwnedTensor(ScalarType type, std::vector<TensorImpl::SizesType> sizes, uint8_t fill,
              TensorShapeDynamism dynamism = TensorShapeDynamism::STATIC)
      : sizes_(std::move(sizes)), dim_order_(sizes_.size()), strides_(sizes_.size()) {
    TensorImpl::StridesType stride = 1;
    for (size_t i = sizes_.size(); i-- > 0;) {
      dim_order_[i] = static_cast<TensorImpl::DimOrderType>(i);
      strides_[i] = stride;
      stride *= sizes_[i];
    }
    data_.assign(static_cast<size_t>(stride) * (type == ScalarType::Byte ? 1 : sizeof(double)), fill);
    impl_.emplace_back(type, static_cast<ssize_t>(sizes_.size()), sizes_.data(), data_.data(), dim_order_.data(),
                       strides_.data(), dynamism);
  }

  EValue value() { return EValue(EtTensor(&impl_[0])); }
  void reverse_dim_order() { std::swap(dim_order_.front(), dim_order_.back()); }
  float* floats() { return reinterpret_cast<float*>(data_.data()); }

 private:
  std::vector<TensorImpl::SizesType> sizes_;
  std::vector<TensorImpl::DimOrderType> dim_order_;
  std::vector<TensorImpl::StridesType> strides_;
  std::vector<uint8_t> data_;
  std::vector<TensorImpl> impl_;  // of one; made after what it points to
};

/// The call of a sound program: one expert of zeros, two tokens. A test spoils one thing.
class Kernel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { executorch::runtime::runtime_init(); }

  void SetUp() override { failing_parallel_call = parallel_calls = 0; }

  Error call(size_t num_arguments = 14) {
    std::vector<EValue*> stack;
    for (size_t i = 0; i < num_arguments; ++i) stack.push_back(&arguments_[i]);
    const auto kernel = executorch::runtime::get_op_function_from_registry("mote::ternary_moe.out");
    EXPECT_TRUE(kernel.ok());
    std::vector<uint8_t> memory(temp_size_, 0xa5);
    MemoryAllocator allocator(static_cast<uint32_t>(memory.size()), memory.data());
    KernelRuntimeContext context(nullptr, temp_size_ > 0 ? &allocator : nullptr);
    (*kernel)(context, {stack.data(), stack.size()});
    return context.failure_state();
  }

  void set_tokens(std::vector<TensorImpl::SizesType> sizes, ScalarType type = ScalarType::Float) {
    x_ = OwnedTensor(type, sizes, 0);
    out_ = OwnedTensor(ScalarType::Float, sizes, 0xff);
    arguments_[0] = x_.value();
    arguments_[13] = out_.value();
  }

  size_t temp_size_ = 1 << 16;
  OwnedTensor x_{ScalarType::Float, {2, 20}, 0};
  OwnedTensor out_{ScalarType::Float, {2, 20}, 0xff};
  OwnedTensor router_{ScalarType::Float, {1, 20}, 0};
  OwnedTensor gate_up_packed_{ScalarType::Byte, {1, 1, 2, 2, 64}, 0x55};
  OwnedTensor gate_up_scale_{ScalarType::Float, {1, 2}, 0};
  OwnedTensor down_packed_{ScalarType::Byte, {1, 2, 1, 64}, 0x55};
  OwnedTensor down_scale_{ScalarType::Float, {1}, 0};
  executorch::aten::ArrayRef<char> activation_{"silu", 4};
  executorch::aten::ArrayRef<char> packing_{"2bit", 4};
  std::vector<EValue> arguments_{
      x_.value(),           router_.value(),     gate_up_packed_.value(), gate_up_scale_.value(),
      down_packed_.value(), down_scale_.value(), EValue(int64_t{1}),      EValue(int64_t{1}),
      EValue(false),        EValue(int64_t{16}), EValue(&activation_),    EValue(&packing_),
      EValue(int64_t{1}),   out_.value()};
};

TEST_F(Kernel, ASoundCallWritesEveryValue) {
  ASSERT_EQ(call(), Error::Ok);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(out_.floats()[i], 0.0f) << i;
}

TEST_F(Kernel, NoTokensAreNoError) {
  for (const auto& sizes : {std::vector<TensorImpl::SizesType>{0, 20}, {1, 0, 20}, {3, 0, 2, 20}}) {
    set_tokens(sizes);
    EXPECT_EQ(call(), Error::Ok);
  }
}

TEST_F(Kernel, EveryArgumentOfAnotherTypeIsRefused) {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const EValue right = arguments_[i];
    for (const EValue& wrong : {EValue(), EValue(0.5), right.isInt() ? EValue(true) : EValue(int64_t{1})}) {
      arguments_[i] = wrong;
      EXPECT_EQ(call(), Error::InvalidArgument) << "argument " << i;
    }
    arguments_[i] = right;
  }
  EXPECT_EQ(call(), Error::Ok);
}

TEST_F(Kernel, TooFewArgumentsAreRefused) {
  for (size_t count = 0; count < 14; ++count) EXPECT_EQ(call(count), Error::InvalidArgument) << count;
}

TEST_F(Kernel, TensorsThatAreNotContiguousAreRefused) {
  for (OwnedTensor* tensor : {&x_, &out_, &router_, &gate_up_packed_, &gate_up_scale_, &down_packed_}) {
    tensor->reverse_dim_order();
    EXPECT_EQ(call(), Error::InvalidArgument);
    tensor->reverse_dim_order();
  }
  EXPECT_EQ(call(), Error::Ok);
}

TEST_F(Kernel, TokensOfAWrongShapeOrTypeAreRefused) {
  for (const auto& sizes : {std::vector<TensorImpl::SizesType>{}, {2, 19}, {2, 0}, {1, 1, 1, 2, 20}}) {
    set_tokens(sizes);
    EXPECT_EQ(call(), Error::InvalidArgument);
  }
  set_tokens({2, 20}, ScalarType::Double);
  EXPECT_EQ(call(), Error::InvalidArgument);
}

TEST_F(Kernel, AnOutputOfAnotherShapeIsRefused) {
  OwnedTensor other(ScalarType::Float, {3, 20}, 0);
  arguments_[13] = other.value();
  EXPECT_EQ(call(), Error::InvalidArgument);
}

TEST_F(Kernel, TooLittleTemporaryMemoryIsRefused) {
  for (const size_t size : {0, 1, 64}) {
    temp_size_ = size;
    EXPECT_EQ(call(), Error::InvalidArgument) << size;
  }
}

TEST_F(Kernel, AFailureOfThePoolIsAnErrorAndNothingFollowsIt) {
  temp_size_ = 16 << 20;
  set_tokens({2000, 20});  // enough that tokens, and values of h, are several tasks
  for (size_t call = 1; call <= 2; ++call) {
    failing_parallel_call = call;
    parallel_calls = 0;
    EXPECT_EQ(this->call(), Error::InvalidArgument);
    EXPECT_EQ(parallel_calls, call);
  }
  failing_parallel_call = 0;
  parallel_calls = 0;
  ASSERT_EQ(call(), Error::Ok);
  EXPECT_EQ(parallel_calls, 2u);
  for (int i = 0; i < 2000 * 20; ++i) ASSERT_EQ(out_.floats()[i], 0.0f) << i;
}

TEST_F(Kernel, LongStringsAndForeignVersionsAreRefused) {
  const std::vector<char> text(1000, 's');
  activation_ = {text.data(), text.size()};
  EXPECT_EQ(call(), Error::InvalidArgument);
  activation_ = {"silu2", 4};  // its end is its length, not a zero
  EXPECT_EQ(call(), Error::Ok);
  arguments_[12] = EValue(int64_t{2});
  EXPECT_EQ(call(), Error::InvalidArgument);
}

}  // namespace
