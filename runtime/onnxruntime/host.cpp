#include "host.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace mote::ort {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMaxTokenRank = 4;

Node make_node(const Operator& type, const Api& api, const OrtKernelInfo* info) {
  Node node;
  node.api = &api;
  node.type = &type;
  size_t size = sizeof(node.name);
  if (!succeeded(api, api.KernelInfo_GetNodeName(info, node.name, &size))) std::strcpy(node.name, "?");
  return node;
}

OrtStatus* read_tensor(const Node& node, const char* name, const OrtValue* value, Tensor* tensor) {
  const Api& api = *node.api;
  void* data = nullptr;
  RETURN_IF_ERROR(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor->is_given = true;
  tensor->data = data;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api.GetDimensionsCount(info, &tensor->rank);
  if (status == nullptr && tensor->rank > kMaxRank) {
    status = node.error("input '%s' has rank %zu, more than any input of the operator", name, tensor->rank);
  }
  if (status == nullptr) status = api.GetDimensions(info, tensor->shape, tensor->rank);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

/// One node of a session.
struct Kernel {
  Node node;
  OrtMemoryInfo* cpu_memory = nullptr;
  AnyLayer layer;
};

/// The runtime's threads, as the core asks for them. With 0 batches its threads take one index after another, so that a
/// busy core delays no more than its own. Keeps the reason of a failure, after which the core asks no more.
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
  const auto expected = static_cast<long long>(kernel.layer.input_width());
  if (x.rank < 1 || x.rank > kMaxTokenRank) {
    return kernel.node.error("x has rank %zu, expected 1 to %zu", x.rank, kMaxTokenRank);
  }
  const auto width = static_cast<long long>(x.shape[x.rank - 1]);
  if (width != expected) {
    return kernel.node.error("the last dimension of x is %lld, expected %lld, %s", width, expected,
                             kernel.node.type->input_width);
  }
  *num_tokens = 1;
  for (size_t i = 0; i + 1 < x.rank; ++i) *num_tokens *= static_cast<size_t>(x.shape[i]);
  return nullptr;
}

/// The shape of x, changed to that of y. Not `known` if the model leaves out the rank, or a size without naming it: the
/// runtime has no way to be told that of y, and would take what it is told for the truth.
struct OutputShape {
  int64_t sizes[kMaxRank] = {};
  const char* names[kMaxRank] = {};
  size_t rank = 0;
  bool is_known = false;
};

OrtStatus* infer_output(const Operator& type, const Api& api, const OrtShapeInferContext* context, OutputShape* out) {
  OrtTensorTypeAndShapeInfo* x = nullptr;  // belongs to the context
  RETURN_IF_ERROR(api.ShapeInferContext_GetInputTypeShape(context, 0, &x));
  RETURN_IF_ERROR(api.GetDimensionsCount(x, &out->rank));
  if (out->rank < 1 || out->rank > kMaxTokenRank) return nullptr;
  RETURN_IF_ERROR(api.GetDimensions(x, out->sizes, out->rank));
  RETURN_IF_ERROR(api.GetSymbolicDimensions(x, out->names, out->rank));
  if (type.output_width_attribute != nullptr) {
    const OrtOpAttr* attribute = nullptr;
    if (!succeeded(api, api.ShapeInferContext_GetAttribute(context, type.output_width_attribute, &attribute))) {
      return nullptr;  // create_kernel() says that it is missing
    }
    const size_t last = out->rank - 1;
    size_t size = 0;
    if (!succeeded(api, api.ReadOpAttr(attribute, kIntegerAttribute, &out->sizes[last], sizeof(int64_t), &size))) {
      return nullptr;
    }
    out->names[last] = "";
  }
  for (size_t i = 0; i < out->rank; ++i) {
    if (out->sizes[i] < 0 && out->names[i][0] == '\0') return nullptr;
  }
  out->is_known = true;
  return nullptr;
}

}  // namespace

bool succeeded(const Api& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

OrtStatus* Node::error(const char* format, ...) const {
  char reason[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(reason, sizeof(reason), format, args);
  va_end(args);
  char message[768];
  std::snprintf(message, sizeof(message), "mote::%s node '%s': %s", type->name, name, reason);
  return api->CreateStatus(kInvalidArgument, message);
}

OrtStatus* Definition::read_weights() {
  for (size_t i = 1; i < node_.type->num_inputs; ++i) RETURN_IF_ERROR(read_weight(i));
  return nullptr;
}

OrtStatus* Definition::read_weight(size_t index) {
  const Api& api = *node_.api;
  const Input& input = node_.type->inputs[index];
  if (input.is_optional) {
    // Absent is the empty name, or no name at all behind the last input that is there, which is an error of this call.
    size_t size = 0;  // with the zero at the end
    if (!succeeded(api, api.KernelInfo_GetInputName(info_, index, nullptr, &size)) || size <= 1) return nullptr;
  }
  int is_constant = 0;
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api.KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    return node_.error("input '%s' is not a constant; weights must be initializers of the graph and not graph inputs",
                       input.name);
  }
  return read_tensor(node_, input.name, value, &weights_[index]);
}

OrtStatus* Definition::read_integer(const char* name, int64_t* value) const {
  if (succeeded(*node_.api, node_.api->KernelInfoGetAttribute_int64(info_, name, value))) return nullptr;
  return node_.error("attribute '%s' is missing or not an integer", name);
}

OrtStatus* Definition::read_string(const char* name, char* value, size_t size) const {
  size_t length = size;
  if (succeeded(*node_.api, node_.api->KernelInfoGetAttribute_string(info_, name, value, &length))) return nullptr;
  return node_.error("attribute '%s' is missing, not a string or longer than %zu bytes", name, size - 1);
}

OrtStatus* create_kernel(const Operator& type, const Api& api, const OrtKernelInfo* info, void** kernel) {
  const Node node = make_node(type, api, info);
  Definition definition(node, info);
  AnyLayer layer;
  RETURN_IF_ERROR(definition.read_weights());
  RETURN_IF_ERROR(type.create(definition, &layer));
  OrtMemoryInfo* cpu_memory = nullptr;
  RETURN_IF_ERROR(api.CreateCpuMemoryInfo(kArenaAllocator, kMemTypeDefault, &cpu_memory));
  void* memory = std::malloc(sizeof(Kernel));
  if (memory == nullptr) {
    api.ReleaseMemoryInfo(cpu_memory);
    return node.error("out of memory");
  }
  *kernel = new (memory) Kernel{node, cpu_memory, layer};
  return nullptr;
}

void destroy_kernel(void* kernel_pointer) {
  auto* kernel = static_cast<Kernel*>(kernel_pointer);
  kernel->node.api->ReleaseMemoryInfo(kernel->cpu_memory);
  std::free(kernel);
}

OrtStatus* compute(void* kernel_pointer, OrtKernelContext* context) {
  const auto& kernel = *static_cast<const Kernel*>(kernel_pointer);
  const Api& api = *kernel.node.api;
  const OrtValue* input = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetInput(context, 0, &input));
  Tensor x;
  RETURN_IF_ERROR(read_tensor(kernel.node, "x", input, &x));
  size_t num_tokens = 0;
  RETURN_IF_ERROR(check_tokens(kernel, x, &num_tokens));
  x.shape[x.rank - 1] = kernel.layer.output_width();
  OrtValue* output = nullptr;
  RETURN_IF_ERROR(api.KernelContext_GetOutput(context, 0, x.shape, x.rank, &output));
  if (num_tokens == 0) return nullptr;
  void* y = nullptr;
  RETURN_IF_ERROR(api.GetTensorMutableData(output, &y));

  size_t size = 0;
  if (!kernel.layer.scratch_size(num_tokens, &size) || size > SIZE_MAX - kAlignment) {
    return kernel.node.error("%zu tokens are too many for this machine's memory; run fewer at a time", num_tokens);
  }
  Scratch scratch(api);
  RETURN_IF_ERROR(scratch.allocate(context, kernel.cpu_memory, size));
  if (scratch.is_null()) {  // an allocator that someone shares with the sessions may say so without a status
    return kernel.node.error("no memory for %zu tokens (%zu bytes)", num_tokens, size + kAlignment - 1);
  }
  Parallel parallel{&api, context};
  const bool done = kernel.layer.compute(static_cast<const float*>(x.data), static_cast<float*>(y), num_tokens,
                                         scratch.aligned(), {Parallel::run, &parallel});
  return done ? nullptr : parallel.status;  // the only other failure is a size that does not fit, refused above
}

OrtStatus* infer_shape(const Operator& type, const Api& api, OrtShapeInferContext* context) {
  OutputShape shape;
  RETURN_IF_ERROR(infer_output(type, api, context, &shape));
  if (!shape.is_known) return nullptr;
  OrtTensorTypeAndShapeInfo* y = nullptr;
  RETURN_IF_ERROR(api.CreateTensorTypeAndShapeInfo(&y));
  OrtStatus* status = api.SetTensorElementType(y, kFloat);
  if (status == nullptr) status = api.SetDimensions(y, shape.sizes, shape.rank);
  if (status == nullptr) status = api.SetSymbolicDimensions(y, shape.names, shape.rank);
  if (status == nullptr) status = api.ShapeInferContext_SetOutputTypeShape(context, 0, y);
  api.ReleaseTensorTypeAndShapeInfo(y);
  return status;
}

}  // namespace mote::ort
