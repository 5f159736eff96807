// Calls the plugin as ONNX Runtime does, over an API of the test's own: failures that no real session can be made to have.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "../ort_abi.h"

// The runtime's opaque types, as far as the plugin's calls need them.
struct OrtStatus {
  int code;
  std::string message;
};
struct OrtValue {
  std::vector<uint8_t> data;
  std::vector<int64_t> shape;
};
struct OrtTensorTypeAndShapeInfo {
  std::vector<int64_t> shape;
};
struct OrtMemoryInfo {};
struct OrtAllocator {};
struct OrtCustomOpDomain {
  const mote::ort::CustomOp* op = nullptr;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  OrtCustomOpDomain* domain = nullptr;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> strings;
  std::vector<OrtValue> inputs;  // [0] is x, which is no constant
};
struct OrtKernelContext {
  OrtValue x;
  OrtValue y;
};

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const mote::ort::ApiBase* base);

namespace {

using mote::ort::Api;

/// What the API of the test does and has done.
struct Behaviour {
  size_t failing_parallel_call = 0;  // counted from 1
  size_t parallel_calls = 0;
  bool has_memory = true;
  size_t blocks = 0;      // of scratch memory in use
  size_t allocators = 0;  // in use
};
Behaviour behaviour;

OrtStatus* find_string(const OrtKernelInfo* info, const char* name, char* out, size_t* size) {
  const std::string& text = info->strings.at(name);
  EXPECT_LT(text.size(), *size);
  text.copy(out, text.size());
  out[text.size()] = '\0';
  *size = text.size() + 1;
  return nullptr;
}

const Api& api() {
  static const Api table = [] {
    Api a{};
    a.CreateStatus = [](int code, const char* message) { return new OrtStatus{code, message}; };
    a.ReleaseStatus = [](OrtStatus* status) { delete status; };

    // Registration. Domains live as long as the process, like the plugin's registration.
    a.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) -> OrtStatus* {
      static OrtCustomOpDomain domain;
      *out = &domain;
      return nullptr;
    };
    a.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const mote::ort::CustomOp* op) -> OrtStatus* {
      domain->op = op;
      return nullptr;
    };
    a.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
      options->domain = domain;
      return nullptr;
    };
    a.HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, int* out) -> OrtStatus* {
      *out = static_cast<int>(options->entries.count(key));
      return nullptr;
    };
    a.AddSessionConfigEntry = [](OrtSessionOptions* options, const char* key, const char* value) -> OrtStatus* {
      options->entries[key] = value;
      return nullptr;
    };

    // Tensors.
    a.GetTensorMutableData = [](OrtValue* value, void** out) -> OrtStatus* {
      *out = value->data.data();
      return nullptr;
    };
    a.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
      *out = new OrtTensorTypeAndShapeInfo{value->shape};
      return nullptr;
    };
    a.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { delete info; };
    a.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
      *out = info->shape.size();
      return nullptr;
    };
    a.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t length) -> OrtStatus* {
      for (size_t i = 0; i < length; ++i) out[i] = info->shape[i];
      return nullptr;
    };

    // The node.
    a.KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* out, size_t* size) -> OrtStatus* {
      *size = std::string("moe").copy(out, *size - 1) + 1;
      out[*size - 1] = '\0';
      return nullptr;
    };
    a.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) -> OrtStatus* {
      *out = info->integers.at(name);
      return nullptr;
    };
    a.KernelInfoGetAttribute_string = find_string;
    a.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* is_constant,
                                             const OrtValue** out) -> OrtStatus* {
      *is_constant = 1;
      *out = &info->inputs.at(index);
      return nullptr;
    };

    // A run.
    a.KernelContext_GetInput = [](const OrtKernelContext* context, size_t, const OrtValue** out) -> OrtStatus* {
      *out = &context->x;
      return nullptr;
    };
    a.KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* shape, size_t rank,
                                   OrtValue** out) -> OrtStatus* {
      context->y.shape.assign(shape, shape + rank);
      context->y.data.assign(context->x.data.size(), 0xff);
      *out = &context->y;
      return nullptr;
    };
    a.CreateCpuMemoryInfo = [](int, int, OrtMemoryInfo** out) -> OrtStatus* {
      *out = new OrtMemoryInfo();
      return nullptr;
    };
    a.ReleaseMemoryInfo = [](OrtMemoryInfo* info) { delete info; };
    a.KernelContext_GetAllocator = [](const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator** out) -> OrtStatus* {
      *out = new OrtAllocator();
      ++behaviour.allocators;
      return nullptr;
    };
    a.ReleaseAllocator = [](OrtAllocator* allocator) {
      delete allocator;
      --behaviour.allocators;
    };
    a.AllocatorAlloc = [](OrtAllocator*, size_t size, void** out) -> OrtStatus* {
      *out = nullptr;
      if (!behaviour.has_memory) return nullptr;
      auto* memory = static_cast<uint8_t*>(std::malloc(size));
      for (size_t i = 0; i < size; ++i) memory[i] = 0xa5;
      *out = memory;
      ++behaviour.blocks;
      return nullptr;
    };
    a.AllocatorFree = [](OrtAllocator*, void* memory) -> OrtStatus* {
      std::free(memory);
      --behaviour.blocks;
      return nullptr;
    };
    a.KernelContext_ParallelFor = [](const OrtKernelContext*, void (*task)(void*, size_t), size_t count, size_t,
                                     void* arg) -> OrtStatus* {
      if (++behaviour.parallel_calls == behaviour.failing_parallel_call) return new OrtStatus{1, "the pool is gone"};
      for (size_t i = count; i-- > 0;) task(arg, i);
      return nullptr;
    };
    return a;
  }();
  return table;
}

OrtValue tensor(std::vector<int64_t> shape, size_t element_bytes, uint8_t fill) {
  size_t size = element_bytes;
  for (int64_t n : shape) size *= static_cast<size_t>(n);
  return {std::vector<uint8_t>(size, fill), std::move(shape)};
}

/// A session with one node: two experts of zeros, wide enough that each step of a run has several tasks.
class Plugin : public ::testing::Test {
 protected:
  static constexpr int64_t kWidth = 1040, kBlocks = 65, kTokens = 40;

  void SetUp() override {
    behaviour = Behaviour();
    static const mote::ort::ApiBase base{[](uint32_t) { return &api(); }, [] { return "1.17.0"; }};
    OrtSessionOptions options;
    ASSERT_EQ(RegisterCustomOps(&options, &base), nullptr);
    op_ = options.domain->op;
    context_.x = tensor({kTokens, kWidth}, sizeof(float), 0);
  }

  void TearDown() override {
    if (kernel_ != nullptr) op_->KernelDestroy(kernel_);
    EXPECT_EQ(behaviour.blocks, 0u);
    EXPECT_EQ(behaviour.allocators, 0u);
  }

  /// The message of the failure, or nothing.
  static std::string message(OrtStatus* status) {
    const std::string text = status == nullptr ? "" : status->message;
    delete status;
    return text;
  }

  std::string create() { return message(op_->CreateKernelV2(op_, &api(), &info_, &kernel_)); }
  std::string compute() { return message(op_->KernelComputeV2(kernel_, &context_)); }

  const mote::ort::CustomOp* op_ = nullptr;
  void* kernel_ = nullptr;
  OrtKernelContext context_;
  OrtKernelInfo info_{
      {{"layout_version", 1}, {"num_experts", 2}, {"top_k", 1}, {"normalize_topk", 0}, {"intermediate_size", kWidth}},
      {{"activation", "silu"}, {"packing", "2bit"}},
      {OrtValue(), tensor({2, kWidth}, sizeof(float), 0), tensor({2, kBlocks, 2, kBlocks, 64}, 1, 0x55),
       tensor({2, 2}, sizeof(float), 0), tensor({2, kBlocks, kBlocks, 64}, 1, 0x55), tensor({2}, sizeof(float), 0)}};
};

TEST_F(Plugin, ARunWritesEveryValue) {
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  EXPECT_EQ(behaviour.parallel_calls, 4u);
  EXPECT_EQ(context_.y.shape, context_.x.shape);
  EXPECT_EQ(context_.y.data, context_.x.data);  // zeros
}

TEST_F(Plugin, AFailureOfThePoolIsTheErrorOfTheRun) {
  ASSERT_EQ(create(), "");
  for (size_t call = 1; call <= 4; ++call) {
    behaviour.failing_parallel_call = call;
    behaviour.parallel_calls = 0;
    EXPECT_EQ(compute(), "the pool is gone");
    EXPECT_EQ(behaviour.parallel_calls, call);
  }
  behaviour.failing_parallel_call = 0;
  EXPECT_EQ(compute(), "") << "the session stays usable after an error";
}

TEST_F(Plugin, NoMemoryWithoutAStatusIsAnError) {
  ASSERT_EQ(create(), "");
  behaviour.has_memory = false;
  EXPECT_NE(compute().find("mote::TernaryMoE node 'moe': no memory for 40 tokens ("), std::string::npos);
  EXPECT_EQ(behaviour.parallel_calls, 0u);
}

TEST_F(Plugin, ARouterOfAnotherRankIsRefused) {
  info_.inputs[1].shape = {2 * kWidth};
  EXPECT_NE(create().find("router has rank 1, expected 2"), std::string::npos);
}

}  // namespace
