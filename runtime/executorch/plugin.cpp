// mote::ternary_moe.out as a kernel of ExecuTorch: fills the core's structs from the runtime's, and nothing more.
//
// The kernel is registered boxed, by hand: the generated wrapper of EXECUTORCH_LIBRARY ends the process when a program
// passes an argument of another type, and here a damaged program is an error like any other.
#include <cstdint>
#include <cstring>

#include <executorch/runtime/core/event_tracer_hooks.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "mote/ternary_moe.h"

namespace mote {
namespace {

using executorch::aten::ScalarType;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;
using EtTensor = executorch::aten::Tensor;

constexpr char kOpName[] = "mote::ternary_moe.out";
constexpr size_t kAlignment = 64;
constexpr size_t kMaxRank = 8;  // more than any tensor of the operator has
constexpr ssize_t kMaxTokenRank = 4;

/// Positions of the arguments, in the order of the schema (docs/operator.md).
enum Argument : size_t {
  kX,
  kRouter,
  kGateUpPacked,
  kGateUpScale,
  kDownPacked,
  kDownScale,
  kNumExperts,
  kTopK,
  kNormalizeTopk,
  kIntermediateSize,
  kActivation,
  kPacking,
  kLayoutVersion,
  kOut,
  kNumArguments,
};
constexpr const char* kNames[] = {
    "x",           "router",   "gate_up_packed", "gate_up_scale",     "down_packed", "down_scale", "num_experts",
    "top_k",       "normalize_topk", "intermediate_size", "activation", "packing", "layout_version", "out"};
static_assert(sizeof(kNames) / sizeof(kNames[0]) == kNumArguments);

/// Data and shape of a tensor of the runtime, whose sizes are 32-bit.
struct Tensor {
  const void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  size_t rank = 0;

  TensorView view() const { return {data, shape, rank}; }
};

Status wrong_type(Argument argument, const char* expected) {
  return Status::error("argument %d (%s) is not %s: the program was made for another version of the operator",
                       static_cast<int>(argument), kNames[argument], expected);
}

Status check_tensor(const Span<EValue*>& stack, Argument argument, ScalarType type) {
  if (!stack[argument]->isTensor()) return wrong_type(argument, "a tensor");
  const EtTensor& tensor = stack[argument]->toTensor();
  if (tensor.scalar_type() != type) {
    return Status::error("%s has dtype %s, expected %s", kNames[argument],
                         executorch::runtime::toString(tensor.scalar_type()), executorch::runtime::toString(type));
  }
  if (static_cast<size_t>(tensor.dim()) > kMaxRank) {
    return Status::error("%s has rank %zd, more than any input of the operator", kNames[argument],
                         static_cast<ssize_t>(tensor.dim()));
  }
  if (!executorch::runtime::tensor_is_default_dim_order(tensor)) {
    return Status::error("%s is not contiguous; export the model with contiguous tensors", kNames[argument]);
  }
  return Status::ok();
}

Status read_tensor(const Span<EValue*>& stack, Argument argument, ScalarType type, Tensor* out) {
  if (const Status status = check_tensor(stack, argument, type); !status.is_ok()) return status;
  const EtTensor& tensor = stack[argument]->toTensor();
  out->data = tensor.const_data_ptr();
  out->rank = static_cast<size_t>(tensor.dim());
  for (size_t i = 0; i < out->rank; ++i) out->shape[i] = tensor.size(static_cast<ssize_t>(i));
  return Status::ok();
}

Status read_integer(const Span<EValue*>& stack, Argument argument, int64_t* out) {
  if (!stack[argument]->isInt()) return wrong_type(argument, "an integer");
  *out = stack[argument]->toInt();
  return Status::ok();
}

/// Copies a string that need not end with a zero.
template <size_t size>
Status read_string(const Span<EValue*>& stack, Argument argument, char (&out)[size]) {
  if (!stack[argument]->isString()) return wrong_type(argument, "a string");
  const auto text = stack[argument]->toString();
  if (text.size() >= size) {
    return Status::error("%s is %zu bytes long, expected less than %zu", kNames[argument], text.size(), size);
  }
  std::memcpy(out, text.data(), text.size());
  out[text.size()] = '\0';
  return Status::ok();
}

#define RETURN_IF_ERROR(expression)                                       \
  do {                                                                    \
    if (Status status_ = (expression); !status_.is_ok()) return status_; \
  } while (false)

Status create_layer(const Span<EValue*>& stack, TernaryMoE* layer) {
  Tensor router, gate_up_packed, gate_up_scale, down_packed, down_scale;
  RETURN_IF_ERROR(read_tensor(stack, kRouter, ScalarType::Float, &router));
  RETURN_IF_ERROR(read_tensor(stack, kGateUpPacked, ScalarType::Byte, &gate_up_packed));
  RETURN_IF_ERROR(read_tensor(stack, kGateUpScale, ScalarType::Float, &gate_up_scale));
  RETURN_IF_ERROR(read_tensor(stack, kDownPacked, ScalarType::Byte, &down_packed));
  RETURN_IF_ERROR(read_tensor(stack, kDownScale, ScalarType::Float, &down_scale));
  if (router.rank != 2) return Status::error("router has rank %zu, expected 2: [num_experts, hidden_size]", router.rank);

  TernaryMoEConfig config;
  char activation[64];
  char packing[64];
  RETURN_IF_ERROR(read_integer(stack, kNumExperts, &config.num_experts));
  RETURN_IF_ERROR(read_integer(stack, kTopK, &config.top_k));
  if (!stack[kNormalizeTopk]->isBool()) return wrong_type(kNormalizeTopk, "a bool");
  config.normalize_topk = stack[kNormalizeTopk]->toBool();
  RETURN_IF_ERROR(read_integer(stack, kIntermediateSize, &config.intermediate_size));
  RETURN_IF_ERROR(read_string(stack, kActivation, activation));
  RETURN_IF_ERROR(read_string(stack, kPacking, packing));
  RETURN_IF_ERROR(read_integer(stack, kLayoutVersion, &config.layout_version));
  config.activation = activation;
  config.packing = packing;
  config.hidden_size = router.shape[1];
  return TernaryMoE::create(config,
                            {router.view(), gate_up_packed.view(), gate_up_scale.view(), down_packed.view(),
                             down_scale.view()},
                            layer);
}

/// Gives y the shape of x, after both were checked.
Status prepare_tokens(const Span<EValue*>& stack, int64_t hidden_size, size_t* num_tokens) {
  RETURN_IF_ERROR(check_tensor(stack, kX, ScalarType::Float));
  RETURN_IF_ERROR(check_tensor(stack, kOut, ScalarType::Float));
  const EtTensor& x = stack[kX]->toTensor();
  if (x.dim() < 1 || x.dim() > kMaxTokenRank) {
    return Status::error("x has rank %zd, expected 1 to %zd", static_cast<ssize_t>(x.dim()), kMaxTokenRank);
  }
  const int64_t width = x.size(x.dim() - 1);
  if (width != hidden_size) {
    return Status::error("the last dimension of x is %lld, expected the hidden size %lld of the router",
                         static_cast<long long>(width), static_cast<long long>(hidden_size));
  }
  EtTensor& out = stack[kOut]->toTensor();
  if (executorch::runtime::resize_tensor(out, x.sizes()) != Error::Ok) {
    return Status::error("out cannot take the shape of x, %zd values; its program planned %zu bytes for it",
                         static_cast<ssize_t>(x.numel()), out.nbytes());
  }
  *num_tokens = static_cast<size_t>(x.numel() / width);
  if (*num_tokens > 0 && (x.const_data_ptr() == nullptr || out.const_data_ptr() == nullptr)) {
    return Status::error("x or out has no memory; set the inputs before executing");
  }
  return Status::ok();
}

/// The runtime's threads, as the core asks for them.
bool run_in_parallel(void*, void (*task)(void*, size_t), size_t count, void* arg) {
  const auto range = [task, arg](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(arg, static_cast<size_t>(i));
  };
  return executorch::extension::parallel_for(0, static_cast<int64_t>(count), 1, range);
}

Status run(KernelRuntimeContext& context, const Span<EValue*>& stack) {
  if (stack.size() < kNumArguments) {
    return Status::error("the program passes %zu arguments, expected %zu", stack.size(), size_t{kNumArguments});
  }
  TernaryMoE layer;
  RETURN_IF_ERROR(create_layer(stack, &layer));
  size_t num_tokens = 0;
  RETURN_IF_ERROR(prepare_tokens(stack, layer.hidden_size(), &num_tokens));
  if (num_tokens == 0) return Status::ok();

  size_t size = 0;
  if (!layer.scratch_size(num_tokens, &size) || size > SIZE_MAX - kAlignment) {
    return Status::error("%zu tokens are too many for this machine's memory; run fewer at a time", num_tokens);
  }
  // Some allocators take the alignment as a wish, so it is made by hand.
  const auto memory = context.allocate_temp(size + kAlignment - 1);
  if (!memory.ok()) {
    return Status::error("no temporary memory for %zu tokens (%zu bytes); give the method a temp allocator of that size",
                         num_tokens, size + kAlignment - 1);
  }
  const auto address = (reinterpret_cast<uintptr_t>(*memory) + kAlignment - 1) & ~uintptr_t{kAlignment - 1};
  const bool done = layer.compute(stack[kX]->toTensor().const_data_ptr<float>(),
                                  stack[kOut]->toTensor().mutable_data_ptr<float>(), num_tokens,
                                  reinterpret_cast<void*>(address), {run_in_parallel, nullptr});
  return done ? Status::ok() : Status::error("ExecuTorch's thread pool refused the work");
}

void ternary_moe(KernelRuntimeContext& context, Span<EValue*> stack) {
  executorch::runtime::internal::EventTracerProfileOpScope scope(context.internal_event_tracer(), kOpName);
  const Status status = run(context, stack);
  if (!status.is_ok()) {
    ET_LOG(Error, "%s: %s", kOpName, status.message());
    context.fail(Error::InvalidArgument);
    return;
  }
  executorch::runtime::internal::event_tracer_log_evalue(context.internal_event_tracer(), *stack[kOut]);
}

/// Runs when the library is loaded. A second copy of the library leaves the first one's kernel in place, because
/// ExecuTorch ends the process at a second registration of a name. (registry_has_op_function would log that it found none.)
[[maybe_unused]] const bool registered = [] {
  for (const auto& kernel : executorch::runtime::get_registered_kernels()) {
    if (std::strcmp(kernel.name_, kOpName) == 0) return false;
  }
  return executorch::runtime::register_kernel(executorch::runtime::Kernel(kOpName, ternary_moe)) == Error::Ok;
}();

}  // namespace
}  // namespace mote
