#include "host.h"

#include <atomic>
#include <cstring>

#include <executorch/runtime/core/event_tracer_hooks.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

namespace mote::et {
namespace {

using ::executorch::runtime::Error;
using EtTensor = ::executorch::aten::Tensor;

constexpr size_t kAlignment = 64;
constexpr size_t kX = 0;
constexpr ssize_t kMaxTokenRank = 4;

/// Gives out the shape of y, after x and out were checked.
Status prepare_tokens(const Operator& type, const Arguments& arguments, const Span<EValue*>& stack,
                      const AnyLayer& layer, size_t* num_tokens) {
  const size_t last_argument = type.num_arguments - 1;
  RETURN_IF_ERROR(arguments.check_tensor(kX, ScalarType::Float));
  RETURN_IF_ERROR(arguments.check_tensor(last_argument, ScalarType::Float));
  const EtTensor& x = stack[kX]->toTensor();
  if (x.dim() < 1 || x.dim() > kMaxTokenRank) {
    return Status::error("x has rank %zd, expected 1 to %zd", static_cast<ssize_t>(x.dim()), kMaxTokenRank);
  }
  const ssize_t last = x.dim() - 1;
  const int64_t width = x.size(last);
  if (width != layer.input_width()) {
    return Status::error("the last dimension of x is %lld, expected %lld, %s", static_cast<long long>(width),
                         static_cast<long long>(layer.input_width()), type.input_width);
  }
  ::executorch::aten::SizesType sizes[kMaxTokenRank] = {};
  for (ssize_t i = 0; i < last; ++i) sizes[i] = static_cast<::executorch::aten::SizesType>(x.size(i));
  sizes[last] = static_cast<::executorch::aten::SizesType>(layer.output_width());
  *num_tokens = static_cast<size_t>(x.numel() / width);
  EtTensor& out = stack[last_argument]->toTensor();
  if (::executorch::runtime::resize_tensor(out, {sizes, static_cast<size_t>(x.dim())}) != Error::Ok) {
    return Status::error("out cannot take the shape of y, %zu rows of %lld; its program planned %zu bytes for it",
                         *num_tokens, static_cast<long long>(layer.output_width()), out.nbytes());
  }
  if (*num_tokens > 0 && (x.const_data_ptr() == nullptr || out.const_data_ptr() == nullptr)) {
    return Status::error("x or out has no memory; set the inputs before executing");
  }
  return Status::ok();
}

/// The runtime's threads, as the core asks for them. parallel_for() cuts a range into equal pieces, one for a thread,
/// and a thread on a busy core would keep the others waiting with its piece. So the range only says how many may
/// take part, and each of them takes the next index until none is left.
bool run_in_parallel(void*, void (*task)(void*, size_t), size_t count, void* arg) {
  std::atomic<size_t> next{0};
  const auto take_part = [&next, task, count, arg](int64_t, int64_t) {
    size_t i;
    while ((i = next.fetch_add(1, std::memory_order_relaxed)) < count) task(arg, i);
  };
  return ::executorch::extension::parallel_for(0, static_cast<int64_t>(count), 1, take_part);
}

Status run(const Operator& type, KernelRuntimeContext& context, const Span<EValue*>& stack) {
  if (stack.size() < type.num_arguments) {
    return Status::error("the program passes %zu arguments, expected %zu", stack.size(), type.num_arguments);
  }
  const Arguments arguments(type.argument_names, stack);
  AnyLayer layer;
  RETURN_IF_ERROR(type.create(arguments, &layer));
  size_t num_tokens = 0;
  RETURN_IF_ERROR(prepare_tokens(type, arguments, stack, layer, &num_tokens));
  if (num_tokens == 0) return Status::ok();

  size_t size = 0;
  if (!layer.scratch_size(num_tokens, &size) || size > SIZE_MAX - kAlignment) {
    return Status::error("%zu tokens are too many for this machine's memory; run fewer at a time", num_tokens);
  }
  // Some allocators take the alignment as a wish, so it is made by hand.
  const auto memory = context.allocate_temp(size + kAlignment - 1);
  if (!memory.ok()) {
    return Status::error(
        "no temporary memory for %zu tokens (%zu bytes); give the method a temp allocator of that size", num_tokens,
        size + kAlignment - 1);
  }
  const auto address = (reinterpret_cast<uintptr_t>(*memory) + kAlignment - 1) & ~uintptr_t{kAlignment - 1};
  const bool done = layer.compute(stack[kX]->toTensor().const_data_ptr<float>(),
                                  stack[type.num_arguments - 1]->toTensor().mutable_data_ptr<float>(), num_tokens,
                                  reinterpret_cast<void*>(address), {run_in_parallel, nullptr});
  return done ? Status::ok() : Status::error("ExecuTorch's thread pool refused the work");
}

}  // namespace

Status Arguments::wrong_type(size_t index, const char* expected) const {
  return Status::error("argument %zu (%s) is not %s: the program was made for another version of the operator", index,
                       names_[index], expected);
}

Status Arguments::check_tensor(size_t index, ScalarType type) const {
  if (!stack_[index]->isTensor()) return wrong_type(index, "a tensor");
  const EtTensor& tensor = stack_[index]->toTensor();
  if (tensor.scalar_type() != type) {
    return Status::error("%s has dtype %s, expected %s", names_[index],
                         ::executorch::runtime::toString(tensor.scalar_type()), ::executorch::runtime::toString(type));
  }
  if (static_cast<size_t>(tensor.dim()) > kMaxRank) {
    return Status::error("%s has rank %zd, more than any input of the operator", names_[index],
                         static_cast<ssize_t>(tensor.dim()));
  }
  if (!::executorch::runtime::tensor_is_default_dim_order(tensor)) {
    return Status::error("%s is not contiguous; export the model with contiguous tensors", names_[index]);
  }
  return Status::ok();
}

Status Arguments::read_weight(size_t index, ScalarType type, Tensor* out) const {
  RETURN_IF_ERROR(check_tensor(index, type));
  const EtTensor& tensor = stack_[index]->toTensor();
  out->is_given = true;
  out->data = tensor.const_data_ptr();
  out->rank = static_cast<size_t>(tensor.dim());
  for (size_t i = 0; i < out->rank; ++i) out->shape[i] = tensor.size(static_cast<ssize_t>(i));
  return Status::ok();
}

Status Arguments::read_optional_weight(size_t index, ScalarType type, Tensor* out) const {
  return stack_[index]->isNone() ? Status::ok() : read_weight(index, type, out);
}

Status Arguments::read_integer(size_t index, int64_t* out) const {
  if (!stack_[index]->isInt()) return wrong_type(index, "an integer");
  *out = stack_[index]->toInt();
  return Status::ok();
}

Status Arguments::read_bool(size_t index, bool* out) const {
  if (!stack_[index]->isBool()) return wrong_type(index, "a bool");
  *out = stack_[index]->toBool();
  return Status::ok();
}

Status Arguments::read_string(size_t index, char* out, size_t size) const {
  if (!stack_[index]->isString()) return wrong_type(index, "a string");
  const auto text = stack_[index]->toString();
  if (text.size() >= size) {
    return Status::error("%s is %zu bytes long, expected less than %zu", names_[index], text.size(), size);
  }
  std::memcpy(out, text.data(), text.size());
  out[text.size()] = '\0';
  return Status::ok();
}

void call(const Operator& type, KernelRuntimeContext& context, const Span<EValue*>& stack) {
  ::executorch::runtime::internal::EventTracerProfileOpScope scope(context.internal_event_tracer(), type.name);
  const Status status = run(type, context, stack);
  if (!status.is_ok()) {
    ET_LOG(Error, "%s: %s", type.name, status.message());
    context.fail(Error::InvalidArgument);
    return;
  }
  ::executorch::runtime::internal::event_tracer_log_evalue(context.internal_event_tracer(),
                                                           *stack[type.num_arguments - 1]);
}

}  // namespace mote::et
