// mote::TernaryMoE as a custom operator of ONNX Runtime: fills the core's structs from the runtime's, and nothing more.
// Memory, threads and tensors are the runtime's; the weights are read where it has mapped them.
#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "mote/ternary_moe.h"
#include "ort_abi.h"

#define RETURN_IF_ERROR(expression)                        \
  do {                                                     \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (false)

namespace mote::ort {
namespace {

/// A session would refuse two domains of one name, so the options remember that they have ours: also when two copies of
/// the plugin, say the installed one and one beside a model, are registered with them.
constexpr const char* kRegisteredKey = "mote.registered";
constexpr size_t kAlignment = 64;
constexpr size_t kMaxRank = 8;  // more than any tensor of the operator has
constexpr size_t kMaxTokenRank = 4;
constexpr const char* kInputNames[] = {"x", "router", "gate_up_packed", "gate_up_scale", "down_packed", "down_scale"};
constexpr int kInputTypes[] = {kFloat, kFloat, kUint8, kFloat, kUint8, kFloat};
constexpr size_t kNumInputs = sizeof(kInputTypes) / sizeof(kInputTypes[0]);

/// The name of a node in messages. The runtime gives no part of a longer one: that becomes "?".
struct NodeName {
  char text[128] = "?";
};

__attribute__((format(printf, 3, 4))) OrtStatus* error(const Api& api, const NodeName& node, const char* format, ...) {
  char reason[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(reason, sizeof(reason), format, args);
  va_end(args);
  char message[768];
  std::snprintf(message, sizeof(message), "mote::TernaryMoE node '%s': %s", node.text, reason);
  return api.CreateStatus(kInvalidArgument, message);
}

/// Drops a status where failing is an answer and not an error. Returns whether it was a success.
bool succeeded(const Api& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

NodeName node_name(const Api& api, const OrtKernelInfo* info) {
  NodeName name;
  size_t size = sizeof(name.text);
  if (!succeeded(api, api.KernelInfo_GetNodeName(info, name.text, &size))) name = NodeName();
  return name;
}

/// Data and shape of a tensor of the runtime.
struct Tensor {
  const void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  size_t rank = 0;

  TensorView view() const { return {data, shape, rank}; }
};

OrtStatus* read_tensor(const Api& api, const NodeName& node, const char* name, const OrtValue* value, Tensor* tensor) {
  void* data = nullptr;
  RETURN_IF_ERROR(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor->data = data;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api.GetDimensionsCount(info, &tensor->rank);
  if (status == nullptr && tensor->rank > kMaxRank) {
    status = error(api, node, "input '%s' has rank %zu, more than any input of the operator", name, tensor->rank);
  }
  if (status == nullptr) status = api.GetDimensions(info, tensor->shape, tensor->rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

OrtStatus* read_weight(const Api& api, const NodeName& node, const OrtKernelInfo* info, size_t index, Tensor* tensor) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    return error(api, node, "input '%s' is not a constant; weights must be initializers of the graph and not graph inputs",
                 kInputNames[index]);
  }
  return read_tensor(api, node, kInputNames[index], value, tensor);
}

OrtStatus* read_integer(const Api& api, const NodeName& node, const OrtKernelInfo* info, const char* name, int64_t* value) {
  if (succeeded(api, api.KernelInfoGetAttribute_int64(info, name, value))) return nullptr;
  return error(api, node, "attribute '%s' is missing or not an integer", name);
}

template <size_t size>
OrtStatus* read_string(const Api& api, const NodeName& node, const OrtKernelInfo* info, const char* name,
                       char (&value)[size]) {
  size_t length = size;
  if (succeeded(api, api.KernelInfoGetAttribute_string(info, name, value, &length))) return nullptr;
  return error(api, node, "attribute '%s' is missing, not a string or longer than %zu bytes", name, size - 1);
}

/// One node of a session.
struct Kernel {
  const Api* api = nullptr;
  NodeName node;
  OrtMemoryInfo* cpu_memory = nullptr;
  TernaryMoE layer;
};

OrtStatus* create_layer(const Api& api, const NodeName& node, const OrtKernelInfo* info, TernaryMoE* layer) {
  Tensor weights[kNumInputs];  // [0] stays empty: x is not known yet
  for (size_t i = 1; i < kNumInputs; ++i) RETURN_IF_ERROR(read_weight(api, node, info, i, &weights[i]));

  TernaryMoEConfig config;
  int64_t normalize_topk = 0;
  char activation[64];
  char packing[64];
  RETURN_IF_ERROR(read_integer(api, node, info, "layout_version", &config.layout_version));
  RETURN_IF_ERROR(read_integer(api, node, info, "num_experts", &config.num_experts));
  RETURN_IF_ERROR(read_integer(api, node, info, "top_k", &config.top_k));
  RETURN_IF_ERROR(read_integer(api, node, info, "normalize_topk", &normalize_topk));
  RETURN_IF_ERROR(read_integer(api, node, info, "intermediate_size", &config.intermediate_size));
  RETURN_IF_ERROR(read_string(api, node, info, "activation", activation));
  RETURN_IF_ERROR(read_string(api, node, info, "packing", packing));
  if (normalize_topk != 0 && normalize_topk != 1) {
    return error(api, node, "normalize_topk is %lld, but must be 0 or 1", static_cast<long long>(normalize_topk));
  }
  config.normalize_topk = normalize_topk == 1;
  config.activation = activation;
  config.packing = packing;
  // The hidden size is no attribute; the router's columns say it, and compute() holds x to it.
  const Tensor& router = weights[1];
  if (router.rank != 2) return error(api, node, "router has rank %zu, expected 2: [num_experts, hidden_size]", router.rank);
  config.hidden_size = router.shape[1];

  const Status status = TernaryMoE::create(
      config, {router.view(), weights[2].view(), weights[3].view(), weights[4].view(), weights[5].view()}, layer);
  return status.is_ok() ? nullptr : error(api, node, "%s", status.message());
}

void destroy_kernel(void* kernel_pointer) {
  auto* kernel = static_cast<Kernel*>(kernel_pointer);
  kernel->api->ReleaseMemoryInfo(kernel->cpu_memory);
  std::free(kernel);
}

OrtStatus* create_kernel(const CustomOp*, const Api* api, const OrtKernelInfo* info, void** out) {
  const NodeName node = node_name(*api, info);
  TernaryMoE layer;
  RETURN_IF_ERROR(create_layer(*api, node, info, &layer));
  OrtMemoryInfo* cpu_memory = nullptr;
  RETURN_IF_ERROR(api->CreateCpuMemoryInfo(kArenaAllocator, kMemTypeDefault, &cpu_memory));
  void* memory = std::malloc(sizeof(Kernel));
  if (memory == nullptr) {
    api->ReleaseMemoryInfo(cpu_memory);
    return error(*api, node, "out of memory");
  }
  *out = new (memory) Kernel{api, node, cpu_memory, layer};
  return nullptr;
}

/// The runtime's threads, as the core asks for them. Keeps the reason of a failure, after which the core asks no more.
struct Parallel {
  const Api* api = nullptr;
  const OrtKernelContext* context = nullptr;
  OrtStatus* status = nullptr;

  static bool run(void* self_pointer, void (*task)(void*, size_t), size_t count, void* arg) {
    auto* self = static_cast<Parallel*>(self_pointer);
    self->status = self->api->KernelContext_ParallelFor(self->context, task, count, 0, arg);
    return self->status == nullptr;
  }
};

/// Memory from the runtime's arena, given back at the end of the scope.
class Scratch {
 public:
  explicit Scratch(const Api& api) : api_(api) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (memory_ != nullptr) succeeded(api_, api_.AllocatorFree(allocator_, memory_));
    if (allocator_ != nullptr) api_.ReleaseAllocator(allocator_);
  }

  OrtStatus* allocate(const OrtKernelContext* context, const OrtMemoryInfo* info, size_t size) {
    RETURN_IF_ERROR(api_.KernelContext_GetAllocator(context, info, &allocator_));
    return api_.AllocatorAlloc(allocator_, size + kAlignment - 1, &memory_);
  }

  bool is_null() const { return memory_ == nullptr; }

  void* aligned() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<void*>((address + kAlignment - 1) & ~uintptr_t{kAlignment - 1});
  }

 private:
  const Api& api_;
  OrtAllocator* allocator_ = nullptr;
  void* memory_ = nullptr;
};

OrtStatus* check_tokens(const Kernel& kernel, const Tensor& x, size_t* num_tokens) {
  const auto hidden_size = static_cast<long long>(kernel.layer.hidden_size());
  if (x.rank < 1 || x.rank > kMaxTokenRank) {
    return error(*kernel.api, kernel.node, "x has rank %zu, expected 1 to %zu", x.rank, kMaxTokenRank);
  }
  const auto width = static_cast<long long>(x.shape[x.rank - 1]);
  if (width != hidden_size) {
    return error(*kernel.api, kernel.node, "the last dimension of x is %lld, expected the hidden size %lld of the router",
                 width, hidden_size);
  }
  *num_tokens = 1;
  for (size_t i = 0; i + 1 < x.rank; ++i) *num_tokens *= static_cast<size_t>(x.shape[i]);
  return nullptr;
}

OrtStatus* compute(void* kernel_pointer, OrtKernelContext* context) {
  const auto& kernel = *static_cast<const Kernel*>(kernel_pointer);
  const Api& api = *kernel.api;
  const OrtValue* input = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetInput(context, 0, &input));
  Tensor x;
  RETURN_IF_ERROR(read_tensor(api, kernel.node, "x", input, &x));
  size_t num_tokens = 0;
  RETURN_IF_ERROR(check_tokens(kernel, x, &num_tokens));
  OrtValue* output = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetOutput(context, 0, x.shape, x.rank, &output));
  if (num_tokens == 0) return nullptr;
  void* y = nullptr;
  RETURN_IF_ERROR(api.GetTensorMutableData(output, &y));

  size_t size = 0;
  if (!kernel.layer.scratch_size(num_tokens, &size) || size > SIZE_MAX - kAlignment) {
    return error(api, kernel.node, "%zu tokens are too many for this machine's memory; run fewer at a time", num_tokens);
  }
  Scratch scratch(api);
  RETURN_IF_ERROR(scratch.allocate(context, kernel.cpu_memory, size));
  if (scratch.is_null()) {  // an allocator that someone shares with the sessions may say so without a status
    return error(api, kernel.node, "no memory for %zu tokens (%zu bytes)", num_tokens, size + kAlignment - 1);
  }
  Parallel parallel{&api, context};
  const bool done = kernel.layer.compute(static_cast<const float*>(x.data), static_cast<float*>(y), num_tokens,
                                         scratch.aligned(), {Parallel::run, &parallel});
  return done ? nullptr : parallel.status;  // the only other failure is a size that does not fit, refused above
}

/// What one ONNX Runtime of this process has of ours. Its sessions hold pointers to it and say nothing when they end, so it
/// is never freed: one small block for each copy of the runtime, however many sessions there are.
struct Registration : CustomOp {
  const Api* api = nullptr;
  OrtCustomOpDomain* domain = nullptr;
  Registration* next = nullptr;
};

/// y has the shape of x, which lets the runtime plan the memory behind this node.
OrtStatus* infer_shape(const CustomOp* op, OrtShapeInferContext* context) {
  const Api& api = *static_cast<const Registration*>(op)->api;
  OrtTensorTypeAndShapeInfo* shape = nullptr;  // belongs to the context
  RETURN_IF_ERROR(api.ShapeInferContext_GetInputTypeShape(context, 0, &shape));
  return api.ShapeInferContext_SetOutputTypeShape(context, 0, shape);
}

void fill_callbacks(CustomOp* op) {
  op->GetName = [](const CustomOp*) { return "TernaryMoE"; };
  op->GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op->GetInputTypeCount = [](const CustomOp*) { return kNumInputs; };
  op->GetInputType = [](const CustomOp*, size_t index) { return kInputTypes[index]; };
  op->GetInputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op->GetInputMemoryType = [](const CustomOp*, size_t) { return kMemTypeDefault; };
  op->GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op->GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op->GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op->GetStartVersion = [](const CustomOp*) { return 1; };
  op->GetEndVersion = [](const CustomOp*) { return 1; };
  op->InferOutputShapeFn = infer_shape;
  op->CreateKernelV2 = create_kernel;
  op->KernelComputeV2 = compute;
  op->KernelDestroy = destroy_kernel;
}

OrtStatus* create_registration(const Api& api, Registration** out) {
  void* memory = std::malloc(sizeof(Registration));
  if (memory == nullptr) return api.CreateStatus(kFail, "mote: out of memory while registering the operator");
  auto* registration = new (memory) Registration();
  registration->api = &api;
  fill_callbacks(registration);
  OrtStatus* status = api.CreateCustomOpDomain("mote", &registration->domain);
  if (status == nullptr) status = api.CustomOpDomain_Add(registration->domain, registration);
  if (status == nullptr) {
    *out = registration;
    return nullptr;
  }
  if (registration->domain != nullptr) api.ReleaseCustomOpDomain(registration->domain);
  std::free(memory);
  return status;
}

/// The registration of this runtime, made at the first call. Lock-free: if two threads make one, both are good and both stay.
OrtStatus* find_registration(const Api& api, Registration** out) {
  static std::atomic<Registration*> registrations{nullptr};
  for (Registration* item = registrations.load(std::memory_order_acquire); item != nullptr; item = item->next) {
    if (item->api != &api) continue;
    *out = item;
    return nullptr;
  }
  RETURN_IF_ERROR(create_registration(api, out));
  Registration* head = registrations.load(std::memory_order_relaxed);
  do {
    (*out)->next = head;
  } while (!registrations.compare_exchange_weak(head, *out, std::memory_order_release, std::memory_order_relaxed));
  return nullptr;
}

/// A null result would mean success, and show up much later as "not a registered function/op".
OrtStatus* runtime_too_old(const ApiBase& base) {
  char message[256];
  std::snprintf(message, sizeof(message),
                "mote needs ONNX Runtime %s or newer, and this is %s: install a newer one, e.g. pip install -U onnxruntime",
                kFirstRuntimeVersion, base.GetVersionString());
  for (uint32_t version = 1; version < kApiVersion; ++version) {
    if (const Api* api = base.GetApi(version)) return api->CreateStatus(kFail, message);
  }
  return nullptr;
}

}  // namespace
}  // namespace mote::ort

/// What ONNX Runtime looks up in the library. Safe to call for any number of session options, from any thread.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const mote::ort::ApiBase* base) {
  const mote::ort::Api* api = base->GetApi(mote::ort::kApiVersion);
  if (api == nullptr) return mote::ort::runtime_too_old(*base);
  int is_registered = 0;
  RETURN_IF_ERROR(api->HasSessionConfigEntry(options, mote::ort::kRegisteredKey, &is_registered));
  if (is_registered != 0) return nullptr;
  mote::ort::Registration* registration = nullptr;
  RETURN_IF_ERROR(mote::ort::find_registration(*api, &registration));
  RETURN_IF_ERROR(api->AddCustomOpDomain(options, registration->domain));
  return api->AddSessionConfigEntry(options, mote::ort::kRegisteredKey, "1");
}
