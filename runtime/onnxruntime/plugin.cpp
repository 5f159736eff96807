// The plugin for ONNX Runtime: its entry point, and the operators it registers.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "operators.h"

namespace mote::ort {
namespace {

constexpr const Operator* kOperators[] = {&kTernaryMoE, &kTernaryMatMul, &kQuantizedMatMul};
constexpr size_t kNumOperators = sizeof(kOperators) / sizeof(kOperators[0]);

/// A session would refuse two domains of one name, so the options remember that they have ours: also when two copies of
/// the plugin, say the installed one and one beside a model, are registered with them.
constexpr const char* kRegisteredKey = "mote.registered";

/// An operator as one ONNX Runtime knows it.
struct RegisteredOp : CustomOp {
  const Operator* type = nullptr;
  const Api* api = nullptr;
};

/// What one ONNX Runtime of this process has of ours. Its sessions hold pointers to it and say nothing when they end,
/// so it is never freed: one small block for each copy of the runtime, however many sessions there are.
struct Registration {
  const Api* api = nullptr;
  OrtCustomOpDomain* domain = nullptr;
  Registration* next = nullptr;
  RegisteredOp ops[kNumOperators];
};

const Operator& type_of(const CustomOp* op) { return *static_cast<const RegisteredOp*>(op)->type; }

bool has_optional_inputs(const Operator& type) {
  for (size_t i = 0; i < type.num_inputs; ++i) {
    if (type.inputs[i].is_optional) return true;
  }
  return false;
}

/// False also for a version that cannot be read.
bool infers_beside_absent_inputs(const char* version) {
  int major = 0;
  int minor = 0;
  if (std::sscanf(version, "%d.%d", &major, &minor) != 2) return false;
  return major > 1 || (major == 1 && minor >= kFirstMinorVersionThatInfersBesideAbsentInputs);
}

void fill_callbacks(CustomOp* op) {
  op->GetName = [](const CustomOp* self) { return type_of(self).name; };
  op->GetExecutionProviderType = [](const CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op->GetInputTypeCount = [](const CustomOp* self) { return type_of(self).num_inputs; };
  op->GetInputType = [](const CustomOp* self, size_t index) { return type_of(self).inputs[index].type; };
  op->GetInputCharacteristic = [](const CustomOp* self, size_t index) {
    return type_of(self).inputs[index].is_optional ? kOptional : kRequired;
  };
  op->GetInputMemoryType = [](const CustomOp*, size_t) { return kMemTypeDefault; };
  op->GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op->GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op->GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op->GetStartVersion = [](const CustomOp*) { return 1; };
  op->GetEndVersion = [](const CustomOp*) { return 1; };
  op->CreateKernelV2 = [](const CustomOp* self, const Api* api, const OrtKernelInfo* info, void** kernel) {
    return create_kernel(type_of(self), *api, info, kernel);
  };
  op->KernelComputeV2 = compute;
  op->KernelDestroy = destroy_kernel;
}

OrtStatus* create_registration(const Api& api, const char* version, Registration** out) {
  void* memory = std::malloc(sizeof(Registration));
  if (memory == nullptr) return api.CreateStatus(kFail, "mote: out of memory while registering the operators");
  auto* registration = new (memory) Registration();
  registration->api = &api;
  OrtStatus* status = api.CreateCustomOpDomain("mote", &registration->domain);
  for (size_t i = 0; i < kNumOperators && status == nullptr; ++i) {
    RegisteredOp& op = registration->ops[i];
    op.type = kOperators[i];
    op.api = &api;
    fill_callbacks(&op);
    // An older runtime looks at all inputs before it calls this, and ends the process at an absent one. Without it,
    // the shapes behind a node are those that the model says, or unknown until a run.
    if (!has_optional_inputs(*op.type) || infers_beside_absent_inputs(version)) {
      op.InferOutputShapeFn = [](const CustomOp* self, OrtShapeInferContext* context) {
        return infer_shape(type_of(self), *static_cast<const RegisteredOp*>(self)->api, context);
      };
    }
    status = api.CustomOpDomain_Add(registration->domain, &op);
  }
  if (status == nullptr) {
    *out = registration;
    return nullptr;
  }
  if (registration->domain != nullptr) api.ReleaseCustomOpDomain(registration->domain);
  std::free(memory);
  return status;
}

/// The registration of this runtime, made at the first call. Lock-free: if two threads make one, both are good and both
/// stay.
OrtStatus* find_registration(const Api& api, const char* version, Registration** out) {
  static std::atomic<Registration*> registrations{nullptr};
  for (Registration* item = registrations.load(std::memory_order_acquire); item != nullptr; item = item->next) {
    if (item->api != &api) continue;
    *out = item;
    return nullptr;
  }
  RETURN_IF_ERROR(create_registration(api, version, out));
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
                "mote needs ONNX Runtime %s or newer, and this is %s: "
                "install a newer one, e.g. pip install -U onnxruntime",
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
  RETURN_IF_ERROR(mote::ort::find_registration(*api, base->GetVersionString(), &registration));
  RETURN_IF_ERROR(api->AddCustomOpDomain(options, registration->domain));
  return api->AddSessionConfigEntry(options, mote::ort::kRegisteredKey, "1");
}
