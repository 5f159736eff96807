// The bridge between the core and ONNX Runtime, the same for every operator: tensors and attributes of a node, its
// errors, and a run with the runtime's memory and threads. An operator is one file that fills an Operator, and a line
// in plugin.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mote/any_layer.h"
#include "mote/runtime.h"
#include "ort_abi.h"

#define RETURN_IF_ERROR(expression)                        \
  do {                                                     \
    if (OrtStatus* status_ = (expression)) return status_; \
  } while (false)

namespace mote::ort {

inline constexpr size_t kMaxInputs = 10;
inline constexpr size_t kMaxRank = 8;  // more than any tensor of an operator has

struct Operator;

/// Drops a status where failing is an answer and not an error. Returns whether it was a success.
bool succeeded(const Api& api, OrtStatus* status);

/// A node, as far as its errors need it.
struct Node {
  const Api* api = nullptr;
  const Operator* type = nullptr;
  char name[128] = "?";  // the runtime gives no part of a longer one, which stays "?"

  /// A status with one sentence, after the name of the operator and of the node.
  __attribute__((format(printf, 2, 3))) OrtStatus* error(const char* format, ...) const;
};

/// Data and shape of a tensor of the runtime, or nothing.
struct Tensor {
  bool is_given = false;
  const void* data = nullptr;
  int64_t shape[kMaxRank] = {};
  size_t rank = 0;

  TensorView view() const { return is_given ? TensorView{data, shape, rank} : TensorView(); }
};

/// What the model says of a node: read while the session is made, not kept.
class Definition {
 public:
  Definition(const Node& node, const OrtKernelInfo* info) : node_(node), info_(info) {}

  /// Reads every input but x, in place. One that is optional and absent stays not given.
  OrtStatus* read_weights();

  const Node& node() const { return node_; }
  const Tensor& weight(size_t index) const { return weights_[index]; }

  OrtStatus* read_integer(const char* name, int64_t* value) const;

  template <size_t size>
  OrtStatus* read_string(const char* name, char (&value)[size]) const {
    return read_string(name, value, size);
  }

 private:
  OrtStatus* read_weight(size_t index);
  OrtStatus* read_string(const char* name, char* value, size_t size) const;

  const Node& node_;
  const OrtKernelInfo* info_;
  Tensor weights_[kMaxInputs];  // [0] stays empty: x is not known yet
};

struct Input {
  const char* name;
  int type;
  bool is_optional = false;
};

/// An operator of the domain "mote". Its first input is x, the others are weights; its output is float32.
struct Operator {
  const char* name;
  const Input* inputs;
  size_t num_inputs;
  /// Makes the layer of a node. Shapes, attributes and which inputs belong together are the core's to check.
  OrtStatus* (*create)(const Definition& definition, AnyLayer* layer);
  /// What the last dimension of x is, for an error.
  const char* input_width;
  /// The attribute that says the last dimension of y; null if that of x does.
  const char* output_width_attribute;
};

/// Of CustomOp; `op` is the operator that the kernel is of.
OrtStatus* create_kernel(const Operator& type, const Api& api, const OrtKernelInfo* info, void** kernel);
void destroy_kernel(void* kernel);
OrtStatus* compute(void* kernel, OrtKernelContext* context);

/// Says the shape of y, which lets the runtime plan the memory behind the node, where that of x is known.
OrtStatus* infer_shape(const Operator& type, const Api& api, OrtShapeInferContext* context);

}  // namespace mote::ort
