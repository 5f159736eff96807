// The bridge between the core and ExecuTorch, the same for every operator: the arguments of a call, its errors, and a
// run with the runtime's memory and threads. An operator is one file that fills an Operator, and a line in plugin.cpp.
//
// Kernels are registered boxed, by hand: the generated wrapper of EXECUTORCH_LIBRARY ends the process when a program
// passes an argument of another type, and here a damaged program is an error like any other.
#pragma once

#include <cstddef>
#include <cstdint>

#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/span.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>

#include "mote/any_layer.h"
#include "mote/runtime.h"
#include "mote/status.h"

#define RETURN_IF_ERROR(expression)                                      \
  do {                                                                   \
    if (Status status_ = (expression); !status_.is_ok()) return status_; \
  } while (false)

namespace mote::et {

using ::executorch::aten::ScalarType;
using ::executorch::runtime::EValue;
using ::executorch::runtime::KernelRuntimeContext;
using ::executorch::runtime::Span;

inline constexpr size_t kMaxRank = 8;  // more than any tensor of an operator has

/// Data and shape of a tensor of the runtime, or nothing. Its sizes are 32-bit there.
struct Tensor {
  bool is_given = false;
  const void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  size_t rank = 0;

  TensorView view() const { return is_given ? TensorView{data, shape, rank} : TensorView(); }
};

/// The arguments of a call, each checked when it is read. Positions are those of the schema.
class Arguments {
 public:
  Arguments(const char* const* names, const Span<EValue*>& stack) : names_(names), stack_(stack) {}

  /// Checks what every tensor must be, and reads nothing.
  Status check_tensor(size_t index, ScalarType type) const;

  Status read_weight(size_t index, ScalarType type, Tensor* out) const;

  /// One that is None stays not given.
  Status read_optional_weight(size_t index, ScalarType type, Tensor* out) const;

  Status read_integer(size_t index, int64_t* out) const;
  Status read_bool(size_t index, bool* out) const;

  /// Copies a string that need not end with a zero.
  template <size_t size>
  Status read_string(size_t index, char (&out)[size]) const {
    return read_string(index, out, size);
  }

 private:
  Status wrong_type(size_t index, const char* expected) const;
  Status read_string(size_t index, char* out, size_t size) const;

  const char* const* names_;
  const Span<EValue*>& stack_;
};

/// An operator, called `mote::...out`. Its first argument is x and its last is out.
struct Operator {
  const char* name;
  const char* const* argument_names;
  size_t num_arguments;
  /// Makes the layer of a call. Shapes, attributes and which weights belong together are the core's to check.
  Status (*create)(const Arguments& arguments, AnyLayer* layer);
  /// What the last dimension of x is, for an error.
  const char* input_width;
};

/// A call of the operator. An error goes to the log, with its sentence, and to the context.
void call(const Operator& type, KernelRuntimeContext& context, const Span<EValue*>& stack);

}  // namespace mote::et
