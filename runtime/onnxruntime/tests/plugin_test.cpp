// Calls the plugin as ONNX Runtime does, over an API of the test's own: failures that no real session can be made to
// have.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
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
  std::vector<std::string> names;  // of the dimensions of no known size
  int type = mote::ort::kFloat;
};
struct OrtMemoryInfo {};
struct OrtAllocator {};
struct OrtOpAttr {
  int64_t value;
};
struct OrtShapeInferContext {
  OrtTensorTypeAndShapeInfo x;
  std::map<std::string, OrtOpAttr> attributes;
  std::optional<OrtTensorTypeAndShapeInfo> y;
};
struct OrtCustomOpDomain {
  std::vector<const mote::ort::CustomOp*> ops;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  OrtCustomOpDomain* domain = nullptr;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> strings;
  std::vector<std::optional<OrtValue>> inputs;  // [0] is x, which is no constant; nothing is the empty name
  size_t variable_input = 0;                    // one that is no constant though it is there
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

OrtStatus* failure() { return new OrtStatus{1, "failed"}; }

OrtStatus* find_string(const OrtKernelInfo* info, const char* name, char* out, size_t* size) {
  const auto found = info->strings.find(name);
  if (found == info->strings.end() || found->second.size() >= *size) return failure();
  const std::string& text = found->second;
  text.copy(out, text.size());
  out[text.size()] = '\0';
  *size = text.size() + 1;
  return nullptr;
}

/// Each version is a runtime of its own.
const Api& api(const std::string& version = "1.24.1") {
  static std::map<std::string, Api> tables;
  const auto [entry, is_new] = tables.try_emplace(version);
  if (is_new) entry->second = [] {
    Api a{};
    a.CreateStatus = [](int code, const char* message) { return new OrtStatus{code, message}; };
    a.ReleaseStatus = [](OrtStatus* status) { delete status; };

    // Registration. Domains live as long as the process, like the plugin's registration.
    a.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) -> OrtStatus* {
      *out = new OrtCustomOpDomain();
      return nullptr;
    };
    a.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const mote::ort::CustomOp* op) -> OrtStatus* {
      domain->ops.push_back(op);
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
      *out = new OrtTensorTypeAndShapeInfo{value->shape, {}};
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

    // Inference of shapes.
    a.CreateTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
      *out = new OrtTensorTypeAndShapeInfo();
      return nullptr;
    };
    a.SetTensorElementType = [](OrtTensorTypeAndShapeInfo* info, int type) -> OrtStatus* {
      info->type = type;
      return nullptr;
    };
    a.SetDimensions = [](OrtTensorTypeAndShapeInfo* info, const int64_t* sizes, size_t length) -> OrtStatus* {
      info->shape.assign(sizes, sizes + length);
      return nullptr;
    };
    a.GetSymbolicDimensions = [](const OrtTensorTypeAndShapeInfo* info, const char** out, size_t length) -> OrtStatus* {
      for (size_t i = 0; i < length; ++i) out[i] = info->names[i].c_str();
      return nullptr;
    };
    a.SetSymbolicDimensions = [](OrtTensorTypeAndShapeInfo* info, const char** names, size_t length) -> OrtStatus* {
      info->names.assign(names, names + length);
      return nullptr;
    };
    a.ShapeInferContext_GetInputTypeShape = [](const OrtShapeInferContext* context, size_t,
                                               OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
      *out = const_cast<OrtTensorTypeAndShapeInfo*>(&context->x);
      return nullptr;
    };
    a.ShapeInferContext_GetAttribute = [](const OrtShapeInferContext* context, const char* name,
                                          const OrtOpAttr** out) -> OrtStatus* {
      const auto found = context->attributes.find(name);
      if (found == context->attributes.end()) return failure();
      *out = &found->second;
      return nullptr;
    };
    a.ReadOpAttr = [](const OrtOpAttr* attribute, int type, void* data, size_t size, size_t* out) -> OrtStatus* {
      if (type != mote::ort::kIntegerAttribute || size < sizeof(int64_t)) return failure();
      std::memcpy(data, &attribute->value, sizeof(int64_t));
      *out = sizeof(int64_t);
      return nullptr;
    };
    a.ShapeInferContext_SetOutputTypeShape = [](const OrtShapeInferContext* context, size_t,
                                                const OrtTensorTypeAndShapeInfo* info) -> OrtStatus* {
      const_cast<OrtShapeInferContext*>(context)->y = *info;
      return nullptr;
    };

    // The node.
    a.KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* out, size_t* size) -> OrtStatus* {
      *size = std::string("moe").copy(out, *size - 1) + 1;
      out[*size - 1] = '\0';
      return nullptr;
    };
    a.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) -> OrtStatus* {
      const auto found = info->integers.find(name);
      if (found == info->integers.end()) return failure();
      *out = found->second;
      return nullptr;
    };
    a.KernelInfoGetAttribute_string = find_string;
    a.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* is_constant,
                                             const OrtValue** out) -> OrtStatus* {
      *is_constant = index < info->inputs.size() && info->inputs[index].has_value() && index != info->variable_input;
      if (*is_constant == 1) *out = &*info->inputs[index];
      return nullptr;
    };
    a.KernelInfo_GetInputName = [](const OrtKernelInfo* info, size_t index, char* out, size_t* size) -> OrtStatus* {
      EXPECT_EQ(out, nullptr);
      if (index >= info->inputs.size()) return failure();
      *size = info->inputs[index].has_value() ? sizeof("a name") : 1;
      return nullptr;
    };

    // A run.
    a.KernelContext_GetInput = [](const OrtKernelContext* context, size_t, const OrtValue** out) -> OrtStatus* {
      *out = &context->x;
      return nullptr;
    };
    a.KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* shape, size_t rank,
                                   OrtValue** out) -> OrtStatus* {
      size_t size = sizeof(float);
      for (size_t i = 0; i < rank; ++i) size *= static_cast<size_t>(shape[i]);
      context->y.shape.assign(shape, shape + rank);
      context->y.data.assign(size, 0xff);
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
  return entry->second;
}

OrtValue tensor(std::vector<int64_t> shape, size_t element_bytes, uint8_t fill) {
  size_t size = element_bytes;
  for (int64_t n : shape) size *= static_cast<size_t>(n);
  return {std::vector<uint8_t>(size, fill), std::move(shape)};
}

/// The message of the failure, or nothing.
std::string message(OrtStatus* status) {
  const std::string text = status == nullptr ? "" : status->message;
  delete status;
  return text;
}

const mote::ort::CustomOp* find_op(const char* name, const char* version = "1.24.1") {
  static std::string current;
  current = version;
  static const mote::ort::ApiBase base{[](uint32_t) { return &api(current); }, [] { return current.c_str(); }};
  OrtSessionOptions options;
  EXPECT_EQ(message(RegisterCustomOps(&options, &base)), "");
  for (const mote::ort::CustomOp* op : options.domain->ops) {
    if (std::string(op->GetName(op)) == name) return op;
  }
  ADD_FAILURE() << name << " is not registered";
  return nullptr;
}

/// A session with one node, given back at the end.
class Session : public ::testing::Test {
 protected:
  explicit Session(const char* op_name) : op_(find_op(op_name)) { behaviour = Behaviour(); }

  void TearDown() override {
    destroy();
    EXPECT_EQ(behaviour.blocks, 0u);
    EXPECT_EQ(behaviour.allocators, 0u);
  }

  std::string create() {
    destroy();
    return message(op_->CreateKernelV2(op_, &api(), &info_, &kernel_));
  }
  std::string compute() { return message(op_->KernelComputeV2(kernel_, &context_)); }

  void expect_zeros() const {
    for (const uint8_t byte : context_.y.data) ASSERT_EQ(byte, 0);
  }

  const mote::ort::CustomOp* op_;
  OrtKernelContext context_;
  OrtKernelInfo info_;

 private:
  void destroy() {
    if (kernel_ != nullptr) op_->KernelDestroy(kernel_);
    kernel_ = nullptr;
  }

  void* kernel_ = nullptr;
};

/// Two experts of zeros, wide enough that each step of a run has several tasks.
class TernaryMoE : public Session {
 protected:
  static constexpr int64_t kWidth = 1040, kBlocks = 65, kTokens = 40;

  TernaryMoE() : Session("TernaryMoE") {
    context_.x = tensor({kTokens, kWidth}, sizeof(float), 0);
    info_.integers = {{"layout_version", 1},        {"num_experts", 2}, {"top_k", 1}, {"normalize_topk", 0},
                      {"intermediate_size", kWidth}, {"shared_group_size", 0}};
    info_.strings = {{"activation", "silu"}, {"packing", "2bit"}, {"shared_format", "none"}};
    info_.inputs = {std::nullopt,
                    tensor({2, kWidth}, sizeof(float), 0),
                    tensor({2, kBlocks, 2, kBlocks, 64}, 1, 0x55),
                    tensor({2, 2}, sizeof(float), 0),
                    tensor({2, kBlocks, kBlocks, 64}, 1, 0x55),
                    tensor({2}, sizeof(float), 0)};
  }

  void set_int8_shared_expert() {
    info_.strings["shared_format"] = "int8";
    info_.inputs.resize(6);
    info_.inputs.push_back(tensor({kBlocks, 2, kWidth / 4, 64}, 1, 0x5a));
    info_.inputs.push_back(tensor({kBlocks, 2, 1, 16}, 2, 0));
    info_.inputs.push_back(tensor({kBlocks, kWidth / 4, 64}, 1, 0x5a));
    info_.inputs.push_back(tensor({kBlocks, 1, 16}, 2, 0));
  }

  /// Without scales: absent between two inputs that are there, and behind the last.
  void set_bf16_shared_expert() {
    info_.strings["shared_format"] = "bf16";
    info_.inputs.resize(6);
    info_.inputs.push_back(tensor({kBlocks, 2, kWidth / 2, 64}, 1, 0));
    info_.inputs.push_back(std::nullopt);
    info_.inputs.push_back(tensor({kBlocks, kWidth / 2, 64}, 1, 0));
  }
};

TEST_F(TernaryMoE, ARunWritesEveryValue) {
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  EXPECT_EQ(context_.y.shape, context_.x.shape);
  expect_zeros();
}

TEST_F(TernaryMoE, ARunWithASharedExpertWritesEveryValue) {
  set_int8_shared_expert();
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  expect_zeros();
  set_bf16_shared_expert();
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  expect_zeros();
  info_.inputs.push_back(std::nullopt);  // the empty name at the end is as good as none
  EXPECT_EQ(create(), "");
}

TEST_F(TernaryMoE, EmptyNamesAreNoSharedExpert) {
  for (int i = 0; i < 4; ++i) info_.inputs.push_back(std::nullopt);
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
}

TEST_F(TernaryMoE, AnOptionalInputThatIsNoConstantIsRefused) {
  set_int8_shared_expert();
  const char* names[] = {"shared_gate_up", "shared_gate_up_scale", "shared_down", "shared_down_scale"};
  for (size_t i = 0; i < 4; ++i) {
    info_.variable_input = 6 + i;
    const std::string sentence = "mote::TernaryMoE node 'moe': input '" + std::string(names[i]) + "' is not a constant";
    EXPECT_EQ(create().substr(0, sentence.size()), sentence);
  }
}

TEST_F(TernaryMoE, AnInputOfNoValuesIsNotAnAbsentOne) {
  for (size_t i = 6; i < 10; ++i) {
    set_int8_shared_expert();
    info_.inputs[i]->shape[0] = 0;
    info_.inputs[i]->data = {};
    EXPECT_NE(create().find("has size 0 in dimension 0"), std::string::npos) << i;
    info_.strings["shared_format"] = "none";
    info_.inputs.resize(i + 1);
    for (size_t k = 6; k < i; ++k) info_.inputs[k] = std::nullopt;
    EXPECT_NE(create(), "") << i;
  }
}

TEST_F(TernaryMoE, AttributesOfTheSharedExpertAreRequired) {
  info_.strings.erase("shared_format");
  EXPECT_NE(create().find("attribute 'shared_format' is missing"), std::string::npos);
  info_.strings["shared_format"] = "none";
  info_.integers.erase("shared_group_size");
  EXPECT_NE(create().find("attribute 'shared_group_size' is missing"), std::string::npos);
}

TEST_F(TernaryMoE, AFailureOfThePoolIsTheErrorOfTheRun) {
  set_int8_shared_expert();
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  const size_t calls = behaviour.parallel_calls;
  EXPECT_GE(calls, 3u);
  for (size_t call = 1; call <= calls; ++call) {
    behaviour.failing_parallel_call = call;
    behaviour.parallel_calls = 0;
    EXPECT_EQ(compute(), "the pool is gone");
    EXPECT_EQ(behaviour.parallel_calls, call);
  }
  behaviour.failing_parallel_call = 0;
  EXPECT_EQ(compute(), "") << "the session stays usable after an error";
}

TEST_F(TernaryMoE, NoMemoryWithoutAStatusIsAnError) {
  ASSERT_EQ(create(), "");
  behaviour.has_memory = false;
  EXPECT_NE(compute().find("mote::TernaryMoE node 'moe': no memory for 40 tokens ("), std::string::npos);
  EXPECT_EQ(behaviour.parallel_calls, 0u);
}

TEST_F(TernaryMoE, ARouterOfAnotherRankIsRefused) {
  info_.inputs[1]->shape = {2 * kWidth};
  EXPECT_NE(create().find("router has rank 1, expected 2"), std::string::npos);
}

class TernaryMatMul : public Session {
 protected:
  TernaryMatMul() : Session("TernaryMatMul") {
    context_.x = tensor({3, 40}, sizeof(float), 0);
    info_.integers = {{"layout_version", 1}, {"in_features", 40}, {"out_features", 21}};
    info_.strings = {{"packing", "1.6bit"}};
    info_.inputs = {std::nullopt, tensor({2, 2, 64}, 1, 121), tensor({1}, sizeof(float), 0)};
  }
};

TEST_F(TernaryMatMul, ARunWritesEveryValueOfItsOwnShape) {
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  EXPECT_EQ(context_.y.shape, (std::vector<int64_t>{3, 21}));
  expect_zeros();
}

TEST_F(TernaryMatMul, ErrorsCarryItsName) {
  info_.integers["out_features"] = 0;
  EXPECT_EQ(create().substr(0, 45), "mote::TernaryMatMul node 'moe': out_features ");
  info_.integers["out_features"] = 21;
  ASSERT_EQ(create(), "");
  context_.x = tensor({3, 39}, sizeof(float), 0);
  EXPECT_EQ(compute(),
            "mote::TernaryMatMul node 'moe': the last dimension of x is 39, expected 40, in_features");
}

class QuantizedMatMul : public Session {
 protected:
  QuantizedMatMul() : Session("QuantizedMatMul") {
    context_.x = tensor({3, 40}, sizeof(float), 0);
    info_.integers = {{"layout_version", 1}, {"in_features", 40}, {"out_features", 21}, {"group_size", 32}};
    info_.strings = {{"format", "int4"}};
    info_.inputs = {std::nullopt, tensor({2, 5, 64}, 1, 0x88), tensor({2, 2, 16}, 2, 0), tensor({21}, sizeof(float), 0)};
  }
};

TEST_F(QuantizedMatMul, ARunWritesEveryValueOfItsOwnShape) {
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  EXPECT_EQ(context_.y.shape, (std::vector<int64_t>{3, 21}));
  expect_zeros();
}

TEST_F(QuantizedMatMul, ScaleAndBiasMayBeAbsent) {
  info_.inputs.pop_back();
  ASSERT_EQ(create(), "");
  info_.inputs.pop_back();
  EXPECT_NE(create().find("scale is missing"), std::string::npos);
  info_.strings["format"] = "bf16";
  info_.integers["group_size"] = 0;
  info_.inputs = {std::nullopt, tensor({2, 20, 64}, 1, 0), std::nullopt, tensor({21}, sizeof(float), 0)};
  ASSERT_EQ(create(), "");
  ASSERT_EQ(compute(), "");
  expect_zeros();
}

TEST_F(QuantizedMatMul, ErrorsCarryItsName) {
  info_.integers["out_features"] = 0;
  EXPECT_EQ(create().substr(0, 47), "mote::QuantizedMatMul node 'moe': out_features ");
  info_.integers["out_features"] = 21;
  info_.strings["format"] = "2bit";
  EXPECT_NE(create().find("format is \"2bit\", but this version of mote knows only"), std::string::npos);
}

/// The shape that is inferred for y, as the runtime is told it: names where the size is not known.
std::optional<OrtTensorTypeAndShapeInfo> infer(const char* op_name, std::vector<int64_t> sizes,
                                               std::vector<std::string> names) {
  const mote::ort::CustomOp* op = find_op(op_name);
  OrtShapeInferContext context;
  context.x = {std::move(sizes), std::move(names)};
  context.attributes["out_features"] = {21};
  EXPECT_EQ(message(op->InferOutputShapeFn(op, &context)), "");
  return context.y;
}

TEST(InferShape, IsThatOfXButForTheWidth) {
  for (const auto& [name, width] : {std::pair{"TernaryMoE", 40}, std::pair{"TernaryMatMul", 21}, std::pair{"QuantizedMatMul", 21}}) {
    const auto y = infer(name, {-1, 7, 40}, {"batch", "", ""});
    ASSERT_TRUE(y.has_value()) << name;
    EXPECT_EQ(y->type, mote::ort::kFloat);
    EXPECT_EQ(y->shape, (std::vector<int64_t>{-1, 7, width}));
    EXPECT_EQ(y->names, (std::vector<std::string>{"batch", "", ""}));
  }
  EXPECT_EQ(infer("TernaryMatMul", {2, -1}, {"", "k"})->shape, (std::vector<int64_t>{2, 21}));
  EXPECT_EQ(infer("TernaryMatMul", {2, -1}, {"", "k"})->names, (std::vector<std::string>{"", ""}));
}

TEST(InferShape, SaysNothingOfAnUnknownShape) {
  EXPECT_FALSE(infer("TernaryMoE", {}, {}).has_value());
  EXPECT_FALSE(infer("TernaryMoE", {-1, 40}, {"", ""}).has_value());
  EXPECT_FALSE(infer("TernaryMatMul", {}, {}).has_value());
  EXPECT_FALSE(infer("TernaryMatMul", {1, 1, 1, 1, 40}, {"", "", "", "", ""}).has_value());
}

TEST(InferShape, IsNotOfferedWhereAnAbsentInputWouldEndTheProcess) {
  for (const auto& [version, is_offered] :
       {std::pair{"1.17.0", false}, std::pair{"1.23.2", false}, std::pair{"1.24.1", true}, std::pair{"2.0.0", true},
        std::pair{"?", false}}) {
    EXPECT_EQ(find_op("TernaryMoE", version)->InferOutputShapeFn != nullptr, is_offered) << version;
    EXPECT_NE(find_op("TernaryMatMul", version)->InferOutputShapeFn, nullptr) << version;
  }
}

}  // namespace
