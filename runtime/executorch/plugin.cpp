// The plugin for ExecuTorch: the kernels that it registers when it is loaded.
#include <cstring>

#include <executorch/runtime/kernel/operator_registry.h>

#include "operators.h"

namespace mote::et {
namespace {

using ::executorch::runtime::Error;
using ::executorch::runtime::Kernel;

/// A kernel is a function without a state, so each operator has one of its own.
template <const Operator& type>
Kernel kernel_of() {
  return Kernel(type.name, [](KernelRuntimeContext& context, Span<EValue*> stack) { call(type, context, stack); });
}

bool is_registered(const Kernel& kernel) {
  for (const auto& other : ::executorch::runtime::get_registered_kernels()) {
    if (std::strcmp(other.name_, kernel.name_) == 0) return true;
  }
  return false;
}

/// Runs when the library is loaded. A second copy of the library leaves the first one's kernels in place, because
/// ExecuTorch ends the process at a second registration of a name. (registry_has_op_function would log that there is
/// none.)
[[maybe_unused]] const bool registered = [] {
  for (const Kernel& kernel : {kernel_of<kTernaryMoE>(), kernel_of<kTernaryMatMul>(), kernel_of<kQuantizedMatMul>()}) {
    if (!is_registered(kernel) && ::executorch::runtime::register_kernel(kernel) != Error::Ok) return false;
  }
  return true;
}();

}  // namespace
}  // namespace mote::et
