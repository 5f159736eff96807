// `llama::update_cache` and `llama::custom_sdpa` for ExecuTorch in a process without Python: float32, one sequence, causal or not,
// no mask. What is not that is refused. Registered only where nobody has done so, because ExecuTorch ends the process at a second
// registration of a name.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include <executorch/runtime/core/event_tracer_hooks.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "attention.h"
#include "mote/status.h"

namespace mote::runner {
namespace {

using ::executorch::aten::ScalarType;
using ::executorch::aten::Tensor;
using ::executorch::runtime::Error;
using ::executorch::runtime::EValue;
using ::executorch::runtime::Kernel;
using ::executorch::runtime::KernelRuntimeContext;
using ::executorch::runtime::Span;

/// Attention below this many multiplications is not worth a wake-up of other threads.
constexpr size_t kWorkPerTask = size_t{1} << 16;

#define CHECK(condition, what) \
  if (!(condition)) return Status::error("expected %s", what)

bool is_float_4d(const EValue& value) {
  return value.isTensor() && value.toTensor().dim() == 4 && value.toTensor().scalar_type() == ScalarType::Float &&
         ::executorch::runtime::tensor_is_default_dim_order(value.toTensor()) && value.toTensor().size(0) == 1;
}

/// value [1, S, heads, D], cache [1, context, heads, D], start, out (which nobody reads).
Status update_cache(Span<EValue*> stack) {
  CHECK(stack.size() >= 4 && is_float_4d(*stack[0]) && is_float_4d(*stack[1]) && stack[2]->isInt(),
        "float32 tensors [1, length, heads, size] and a position");
  const Tensor& value = stack[0]->toTensor();
  Tensor& cache = stack[1]->toTensor();
  const int64_t start = stack[2]->toInt();
  CHECK(value.size(2) == cache.size(2) && value.size(3) == cache.size(3), "a cache of as many heads of the same size");
  CHECK(start >= 0 && start <= cache.size(1) - value.size(1), "positions within the cache");
  const auto row = static_cast<size_t>(cache.size(2) * cache.size(3));
  std::memcpy(cache.mutable_data_ptr<float>() + static_cast<size_t>(start) * row, value.const_data_ptr<float>(),
              value.nbytes());
  return Status::ok();
}

/// Rows of a piece of work. Those of a prompt differ in length, so each thread has some pieces; those of a single position
/// are few, and stay together with those that share their keys, unless that leaves a thread without work.
size_t rows_per_piece(const AttentionShape& shape, size_t threads) {
  const auto share = [rows = attention_rows(shape)](size_t pieces) { return (rows + pieces - 1) / pieces; };
  const size_t least = std::min(shape.query_heads / shape.key_heads, share(threads));
  return std::min(kAttentionTile, std::max(least, share(4 * threads)));
}

bool attend_in_parallel(const AttentionShape& shape, const float* query, const float* keys, const float* values,
                        float* out) {
  const size_t rows = attention_rows(shape);
  const size_t work = rows * (shape.start + shape.length) * shape.head_size;
  const size_t threads = static_cast<size_t>(::executorch::extension::get_thread_count());
  if (threads <= 1 || work <= kWorkPerTask) {
    attend(shape, query, keys, values, out, 0, rows);
    return true;
  }
  const size_t piece = rows_per_piece(shape, threads), pieces = (rows + piece - 1) / piece;
  std::atomic<size_t> next{0};
  return ::executorch::extension::parallel_for(
      0, static_cast<int64_t>(threads), 1, [&](int64_t, int64_t) {
        for (size_t i = next++; i < pieces; i = next++) {
          attend(shape, query, keys, values, out, i * piece, std::min(rows, (i + 1) * piece));
        }
      });
}

/// query [1, S, heads, D], keys and values [1, context, key heads, D], start, mask, dropout, is_causal, scale, out.
Status custom_sdpa(Span<EValue*> stack) {
  CHECK(stack.size() >= 9 && is_float_4d(*stack[0]) && is_float_4d(*stack[1]) && is_float_4d(*stack[2]) &&
            is_float_4d(*stack[8]),
        "float32 tensors [1, length, heads, size]");
  CHECK(stack[3]->isInt() && stack[4]->isNone() && stack[6]->isBool() && (stack[7]->isNone() || stack[7]->isDouble()),
        "a position, no mask, is_causal and a scale");
  CHECK(stack[5]->isDouble() && stack[5]->toDouble() == 0.0, "no dropout");
  const Tensor& query = stack[0]->toTensor();
  const Tensor& keys = stack[1]->toTensor();
  const Tensor& values = stack[2]->toTensor();
  Tensor& out = stack[8]->toTensor();
  const int64_t start = stack[3]->toInt();
  for (ssize_t i = 0; i < 4; ++i) CHECK(keys.size(i) == values.size(i), "as many keys as values");
  CHECK(query.size(3) == keys.size(3) && keys.size(2) > 0 && query.size(2) % keys.size(2) == 0,
        "a multiple of the keys' heads, of the same size");
  CHECK(start >= 0 && query.size(1) > 0 && start <= keys.size(1) - query.size(1), "positions within the cache");
  if (::executorch::runtime::resize_tensor(out, query.sizes()) != Error::Ok) {
    return Status::error("out cannot take the shape of the query");
  }
  const AttentionShape shape = {
      static_cast<size_t>(query.size(1)),
      static_cast<size_t>(query.size(2)),
      static_cast<size_t>(keys.size(2)),
      static_cast<size_t>(query.size(3)),
      static_cast<size_t>(start),
      stack[6]->toBool(),
      static_cast<float>(stack[7]->isNone() ? 1.0 / std::sqrt(static_cast<double>(query.size(3)))
                                            : stack[7]->toDouble()),
  };
  const bool done = attend_in_parallel(shape, query.const_data_ptr<float>(), keys.const_data_ptr<float>(),
                                       values.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return done ? Status::ok() : Status::error("ExecuTorch's thread pool refused the work");
}

template <Status (*function)(Span<EValue*>)>
Kernel kernel_of(const char* name) {
  static const char* const traced = name;
  return Kernel(name, [](KernelRuntimeContext& context, Span<EValue*> stack) {
    ::executorch::runtime::internal::EventTracerProfileOpScope scope(context.internal_event_tracer(), traced);
    const Status status = function(stack);
    if (status.is_ok()) return;
    ET_LOG(Error, "%s: %s", traced, status.message());
    context.fail(Error::InvalidArgument);
  });
}

bool is_registered(const Kernel& kernel) {
  for (const auto& other : ::executorch::runtime::get_registered_kernels()) {
    if (std::strcmp(other.name_, kernel.name_) == 0) return true;
  }
  return false;
}

[[maybe_unused]] const bool registered = [] {
  const Kernel kernels[] = {
      kernel_of<update_cache>("llama::update_cache.out"),
      kernel_of<custom_sdpa>("llama::custom_sdpa.out"),
  };
  for (const Kernel& kernel : kernels) {
    if (!is_registered(kernel) && ::executorch::runtime::register_kernel(kernel) != Error::Ok) return false;
  }
  return true;
}();

}  // namespace
}  // namespace mote::runner
