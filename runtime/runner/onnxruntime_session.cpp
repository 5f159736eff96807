// ONNX Runtime through its C ABI, loaded at run time: `vision.onnx`, `embedding.onnx` and `model.onnx` of a folder.
//
// Keys and values lie in one buffer of context length for each layer, bound to the decoder as past and as present at once, so
// attention appends in place and a step copies nothing.
#include "onnxruntime_session.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "../onnxruntime/ort_abi.h"
#include "check.h"
#include "chunks.h"
#include "file.h"

namespace mote::runner {
namespace {

using mote::ort::Api;
using mote::ort::ApiBase;

constexpr int64_t kAny = -1;  // a size that the graph leaves open

/// Owns an object of the runtime.
template <class T>
class Owned {
 public:
  Owned() = default;
  Owned(T* object, void (*release)(T*)) : object_(object), release_(release) {}
  Owned(Owned&& other) noexcept : object_(other.object_), release_(other.release_) { other.object_ = nullptr; }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Owned() {
    if (object_ != nullptr) release_(object_);
  }
  T* get() const { return object_; }

 private:
  T* object_ = nullptr;
  void (*release_)(T*) = nullptr;
};

/// An input or output of a graph.
struct Value {
  int type = 0;
  std::vector<int64_t> shape;
};
using Values = std::map<std::string, Value>;

struct Graph {
  std::string name;  // without .onnx
  Owned<OrtSession> session;
  bool is_profiled = false;
  Values inputs, outputs;
};

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
  return text + "]";
}

/// Bytes of float32 values; false if they are more than any machine has.
bool float_bytes(std::initializer_list<size_t> sizes, size_t* bytes) {
  *bytes = sizeof(float);
  for (const size_t size : sizes) {
    if (__builtin_mul_overflow(*bytes, size, bytes)) return false;
  }
  return true;
}

class OnnxRuntimeSession : public Session {
 public:
  ~OnnxRuntimeSession() override;
  Status open(const SessionOptions& options) override;
  std::string runtime_version() const override { return base_->GetVersionString(); }
  size_t hidden_size() const override { return hidden_size_; }
  size_t vocab_size() const override { return vocab_size_; }
  Status encode_images(const float* pixels, size_t num_images, std::vector<float>* features) override;
  Status embed(const std::vector<int64_t>& ids, int64_t image_token_id, const std::vector<float>& features,
               std::vector<float>* embeddings) override;
  Status decode(const std::vector<float>& embeddings, std::vector<float>* logits) override;
  void reset() override { position_ = 0; }  // the mask hides what is left in the buffers
  Status finish_runtime_trace() override;

 private:
  using Buffer = std::unique_ptr<void, decltype(&std::free)>;

  Status check(OrtStatus* status, const char* what) const;
  Status load_runtime(const std::string& library);
  Status open_graph(const char* name, int threads, bool plugin, Graph* graph);
  Status read_value(const OrtTensorTypeAndShapeInfo* info, Value* value) const;
  Status read_values(const Graph& graph, bool inputs, Values* values) const;
  static Status check_value(const Graph& graph, const Values& values, const std::string& name, int type,
                            const std::vector<int64_t>& expected);
  Status check_graphs();
  Status check_cache();
  Status bind_cache();
  Status encode_image(const float* pixels, std::vector<float>* features);
  Status embed_chunk(const int64_t* ids, size_t count, const float* features, size_t rows, float* embeddings);
  Status append(const float* embeddings, size_t count);
  Status make_tensor(void* data, size_t bytes, const std::vector<int64_t>& shape, int type,
                     Owned<OrtValue>* value) const;
  Status bind(const char* name, bool input, const Owned<OrtValue>& value);
  Status end_profile(Graph* graph, std::string* file);
  std::string trace_prefix(const Graph& graph) const;

  SessionOptions options_;
  const ApiBase* base_ = nullptr;
  const Api* api_ = nullptr;
  OrtAllocator* allocator_ = nullptr;  // the runtime's own
  // Destroyed from the last to the first.
  Owned<OrtEnv> env_;
  Owned<OrtMemoryInfo> memory_;
  Graph vision_, embedding_, decoder_;
  std::vector<Buffer> cache_;
  std::vector<Owned<OrtValue>> bound_;
  Owned<OrtIoBinding> binding_;
  std::vector<int64_t> mask_;
  std::vector<float> logits_;
  size_t num_layers_ = 0;
  size_t hidden_size_ = 0;
  size_t vocab_size_ = 0;
  size_t position_ = 0;
};

/// The runtime's error as ours.
Status OnnxRuntimeSession::check(OrtStatus* status, const char* what) const {
  if (status == nullptr) return Status::ok();
  std::string text = api_->GetErrorMessage(status);
  for (char& c : text) c = c == '\n' ? ' ' : c;
  api_->ReleaseStatus(status);
  return Status::error("onnxruntime cannot %s: %.250s", what, text.c_str());
}

Status OnnxRuntimeSession::load_runtime(const std::string& library) {
  const std::string path = library.empty() ? find_library({"."}, "libonnxruntime.so") : library;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return Status::error("ONNX Runtime cannot be loaded (%.180s); name its library with --runtime-library", dlerror());
  }
  auto* get_base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) return Status::error("%.200s is not ONNX Runtime: it has no OrtGetApiBase", path.c_str());
  base_ = get_base();
  api_ = base_->GetApi(mote::ort::kApiVersion);
  if (api_ == nullptr) {
    return Status::error("mote needs ONNX Runtime %s or newer, and this is %s", mote::ort::kFirstRuntimeVersion,
                         base_->GetVersionString());
  }
  OrtEnv* env = nullptr;
  RETURN_IF_ERROR(check(api_->CreateEnv(mote::ort::kLogFatal, "mote-runner", &env), "start"));
  env_ = Owned<OrtEnv>(env, api_->ReleaseEnv);
  RETURN_IF_ERROR(check(api_->DisableTelemetryEvents(env), "switch off its telemetry"));
  OrtMemoryInfo* memory = nullptr;
  RETURN_IF_ERROR(check(
      api_->CreateCpuMemoryInfo(mote::ort::kDeviceAllocator, mote::ort::kMemTypeDefault, &memory), "describe memory"));
  memory_ = Owned<OrtMemoryInfo>(memory, api_->ReleaseMemoryInfo);
  return check(api_->GetAllocatorWithDefaultOptions(&allocator_), "allocate");
}

Status OnnxRuntimeSession::open(const SessionOptions& options) {
  options_ = options;
  RETURN_IF_ERROR(load_runtime(options.runtime_library));
  RETURN_IF_ERROR(open_graph("model", options.threads, true, &decoder_));
  // Only gathers rows: threads of its own would wait for work that never comes.
  RETURN_IF_ERROR(open_graph("embedding", 1, false, &embedding_));
  if (options.takes_images) RETURN_IF_ERROR(open_graph("vision", options.threads, true, &vision_));
  RETURN_IF_ERROR(check_graphs());
  RETURN_IF_ERROR(check_cache());
  return bind_cache();
}

Status OnnxRuntimeSession::open_graph(const char* name, int threads, bool plugin, Graph* graph) {
  graph->name = name;
  OrtSessionOptions* settings = nullptr;
  RETURN_IF_ERROR(check(api_->CreateSessionOptions(&settings), "make session options"));
  const Owned<OrtSessionOptions> owned(settings, api_->ReleaseSessionOptions);
  RETURN_IF_ERROR(check(api_->SetSessionLogSeverityLevel(settings, mote::ort::kLogFatal), "be quiet"));
  RETURN_IF_ERROR(check(api_->SetIntraOpNumThreads(settings, threads), "take this number of threads"));
  if (plugin && !options_.plugin.empty()) {
    RETURN_IF_ERROR(
        check(api_->RegisterCustomOpsLibrary_V2(settings, options_.plugin.c_str()), "load the plugin (see --plugin)"));
  }
  if (!options_.runtime_trace.empty()) {
    RETURN_IF_ERROR(check(api_->EnableProfiling(settings, trace_prefix(*graph).c_str()), "profile"));
  }
  const std::string path = options_.model_folder + "/" + name + ".onnx";
  if (!is_file(path)) return Status::error("%.250s does not exist: expected an export for onnxruntime", path.c_str());
  OrtSession* session = nullptr;
  const std::string what = std::string("load ") + name + ".onnx";
  RETURN_IF_ERROR(check(api_->CreateSession(env_.get(), path.c_str(), settings, &session), what.c_str()));
  graph->session = Owned<OrtSession>(session, api_->ReleaseSession);
  graph->is_profiled = !options_.runtime_trace.empty();
  RETURN_IF_ERROR(read_values(*graph, true, &graph->inputs));
  return read_values(*graph, false, &graph->outputs);
}

Status OnnxRuntimeSession::read_value(const OrtTensorTypeAndShapeInfo* info, Value* value) const {
  constexpr const char* kWhat = "describe a tensor";
  size_t rank = 0;
  RETURN_IF_ERROR(check(api_->GetTensorElementType(info, &value->type), kWhat));
  RETURN_IF_ERROR(check(api_->GetDimensionsCount(info, &rank), kWhat));
  value->shape.resize(rank);
  return check(api_->GetDimensions(info, value->shape.data(), rank), kWhat);
}

Status OnnxRuntimeSession::read_values(const Graph& graph, bool inputs, Values* values) const {
  constexpr const char* kWhat = "describe a graph";
  const OrtSession* session = graph.session.get();
  size_t count = 0;
  RETURN_IF_ERROR(check((inputs ? api_->SessionGetInputCount : api_->SessionGetOutputCount)(session, &count), kWhat));
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    RETURN_IF_ERROR(check(
        (inputs ? api_->SessionGetInputName : api_->SessionGetOutputName)(session, i, allocator_, &name), kWhat));
    Value& value = (*values)[name];
    RETURN_IF_ERROR(check(api_->AllocatorFree(allocator_, name), kWhat));
    OrtTypeInfo* type = nullptr;
    RETURN_IF_ERROR(check(
        (inputs ? api_->SessionGetInputTypeInfo : api_->SessionGetOutputTypeInfo)(session, i, &type), kWhat));
    const Owned<OrtTypeInfo> owned(type, api_->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    RETURN_IF_ERROR(check(api_->CastTypeInfoToTensorInfo(type, &tensor), kWhat));
    if (tensor != nullptr) RETURN_IF_ERROR(read_value(tensor, &value));  // else its type stays 0, which fits nothing
  }
  return Status::ok();
}

/// Compares with the shape that we use; kAny and what the graph leaves open fit everything.
Status OnnxRuntimeSession::check_value(const Graph& graph, const Values& values, const std::string& name, int type,
                                       const std::vector<int64_t>& expected) {
  const auto found = values.find(name);
  if (found == values.end()) {
    return Status::error("%s.onnx has no %.60s: expected an export of mote", graph.name.c_str(), name.c_str());
  }
  const std::vector<int64_t>& shape = found->second.shape;
  bool fits = found->second.type == type && shape.size() == expected.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || expected[i] == kAny || shape[i] == expected[i];
  }
  if (fits) return Status::ok();
  return Status::error("%s.onnx: %.60s has type %d and shape %.80s, expected type %d and shape %.80s",
                       graph.name.c_str(), name.c_str(), found->second.type, to_string(shape).c_str(), type,
                       to_string(expected).c_str());
}

/// Finds the sizes, and compares every shape with them before a wrong one is read or written by anyone.
Status OnnxRuntimeSession::check_graphs() {
  using mote::ort::kFloat;
  using mote::ort::kInt64;
  RETURN_IF_ERROR(check_value(decoder_, decoder_.outputs, "logits", kFloat, {1, 1, kAny}));
  RETURN_IF_ERROR(check_value(decoder_, decoder_.inputs, "inputs_embeds", kFloat, {1, kAny, kAny}));
  const int64_t hidden = decoder_.inputs["inputs_embeds"].shape[2], vocab = decoder_.outputs["logits"].shape[2];
  if (hidden < 1 || vocab < 1) return Status::error("model.onnx does not say its hidden size and its vocabulary's");
  hidden_size_ = static_cast<size_t>(hidden);
  vocab_size_ = static_cast<size_t>(vocab);
  RETURN_IF_ERROR(check_value(decoder_, decoder_.inputs, "attention_mask", kInt64, {1, kAny}));
  RETURN_IF_ERROR(check_value(embedding_, embedding_.inputs, "input_ids", kInt64, {1, kAny}));
  RETURN_IF_ERROR(check_value(embedding_, embedding_.outputs, "inputs_embeds", kFloat, {1, kAny, hidden}));
  const bool takes_images = embedding_.inputs.count("image_features") != 0;
  if (takes_images) {
    RETURN_IF_ERROR(check_value(embedding_, embedding_.inputs, "image_features", kFloat, {kAny, hidden}));
  }
  if (embedding_.inputs.size() != (takes_images ? 2 : 1)) return Status::error("embedding.onnx has unknown inputs");
  if (!options_.takes_images) return Status::ok();
  if (!takes_images) return Status::error("the prompt has images, but embedding.onnx takes none");
  const auto size = [](size_t value) { return static_cast<int64_t>(value); };
  RETURN_IF_ERROR(check_value(vision_, vision_.inputs, "pixel_values", kFloat,
                              {1, kAny, size(options_.channels), size(options_.height), size(options_.width)}));
  return check_value(vision_, vision_.outputs, "image_features", kFloat, {kAny, hidden});
}

/// Every further input of the decoder is the key or value of a layer.
Status OnnxRuntimeSession::check_cache() {
  if (decoder_.inputs.size() < 4 || decoder_.inputs.size() % 2 != 0) {
    return Status::error("model.onnx has %zu inputs, expected two, and two for each layer", decoder_.inputs.size());
  }
  num_layers_ = decoder_.inputs.size() / 2 - 1;
  const Value& first = decoder_.inputs["past_key_values.0.key"];
  if (first.shape.size() != 4 || first.shape[1] < 1 || first.shape[3] < 1) {
    return Status::error("model.onnx: past_key_values.0.key has shape %.80s, expected [1, heads, ?, size of a head]",
                         to_string(first.shape).c_str());
  }
  if (first.type != mote::ort::kFloat && first.type != mote::ort::kInt8) {
    return Status::error("model.onnx: past_key_values.0.key has type %d, expected float32 or int8", first.type);
  }
  const std::vector<int64_t> expected = {1, first.shape[1], static_cast<int64_t>(options_.context_length),
                                         first.shape[3]};
  for (size_t layer = 0; layer < num_layers_; ++layer) {
    for (const char* kind : {".key", ".value"}) {
      const std::string suffix = std::to_string(layer) + kind;
      RETURN_IF_ERROR(
          check_value(decoder_, decoder_.inputs, "past_key_values." + suffix, first.type, expected));
      RETURN_IF_ERROR(check_value(decoder_, decoder_.outputs, "present." + suffix, first.type,
                                  {1, expected[1], kAny, expected[3]}));
    }
  }
  return Status::ok();
}

Status OnnxRuntimeSession::bind_cache() {
  OrtIoBinding* binding = nullptr;
  RETURN_IF_ERROR(check(api_->CreateIoBinding(decoder_.session.get(), &binding), "bind"));
  binding_ = Owned<OrtIoBinding>(binding, api_->ReleaseIoBinding);
  const int type = decoder_.inputs["past_key_values.0.key"].type;
  const std::vector<int64_t>& first = decoder_.inputs["past_key_values.0.key"].shape;
  const std::vector<int64_t> shape = {1, first[1], static_cast<int64_t>(options_.context_length), first[3]};
  size_t bytes = 0;
  const bool fits = float_bytes({static_cast<size_t>(first[1]), options_.context_length, static_cast<size_t>(first[3])}, &bytes);
  if (type == mote::ort::kInt8) bytes /= sizeof(float);
  for (size_t layer = 0; layer < num_layers_; ++layer) {
    for (const char* kind : {".key", ".value"}) {
      // Zeroed memory from the system takes no room before it is written to.
      cache_.emplace_back(fits ? std::calloc(bytes, 1) : nullptr, &std::free);
      if (cache_.back() == nullptr) {
        return Status::error("no memory for the KV cache: %zu buffers of shape %.80s; export with a shorter context",
                             2 * num_layers_, to_string(shape).c_str());
      }
      Owned<OrtValue> value;
      RETURN_IF_ERROR(make_tensor(cache_.back().get(), bytes, shape, type, &value));
      const std::string suffix = std::to_string(layer) + kind;
      RETURN_IF_ERROR(bind(("past_key_values." + suffix).c_str(), true, value));
      RETURN_IF_ERROR(bind(("present." + suffix).c_str(), false, value));
      bound_.push_back(std::move(value));
    }
  }
  mask_.assign(options_.context_length, 1);
  logits_.resize(vocab_size_);
  Owned<OrtValue> logits;
  RETURN_IF_ERROR(make_tensor(logits_.data(), vocab_size_ * sizeof(float), {1, 1, static_cast<int64_t>(vocab_size_)},
                              mote::ort::kFloat, &logits));
  RETURN_IF_ERROR(bind("logits", false, logits));
  bound_.push_back(std::move(logits));
  return Status::ok();
}

/// A tensor in memory of ours.
Status OnnxRuntimeSession::make_tensor(void* data, size_t bytes, const std::vector<int64_t>& shape, int type,
                                       Owned<OrtValue>* value) const {
  OrtValue* tensor = nullptr;
  RETURN_IF_ERROR(check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(),
                                                             type, &tensor),
                        "make a tensor"));
  *value = Owned<OrtValue>(tensor, api_->ReleaseValue);
  return Status::ok();
}

Status OnnxRuntimeSession::bind(const char* name, bool input, const Owned<OrtValue>& value) {
  return check((input ? api_->BindInput : api_->BindOutput)(binding_.get(), name, value.get()), "bind");
}

/// One after another, with the memory of one.
Status OnnxRuntimeSession::encode_images(const float* pixels, size_t num_images, std::vector<float>* features) {
  features->clear();
  const size_t values = options_.channels * options_.height * options_.width;
  for (size_t i = 0; i < num_images; ++i) RETURN_IF_ERROR(encode_image(pixels + i * values, features));
  return Status::ok();
}

/// Appends the features of one image.
Status OnnxRuntimeSession::encode_image(const float* pixels, std::vector<float>* features) {
  const std::vector<int64_t> shape = {1, 1, static_cast<int64_t>(options_.channels),
                                      static_cast<int64_t>(options_.height), static_cast<int64_t>(options_.width)};
  const size_t count = options_.channels * options_.height * options_.width;
  Owned<OrtValue> input;
  RETURN_IF_ERROR(make_tensor(const_cast<float*>(pixels), count * sizeof(float), shape, mote::ort::kFloat, &input));
  const char* input_names[] = {"pixel_values"};
  const char* output_names[] = {"image_features"};
  const OrtValue* inputs[] = {input.get()};
  OrtValue* result = nullptr;
  RETURN_IF_ERROR(check(
      api_->Run(vision_.session.get(), nullptr, input_names, inputs, 1, output_names, 1, &result), "run vision.onnx"));
  const Owned<OrtValue> output(result, api_->ReleaseValue);

  OrtTensorTypeAndShapeInfo* info = nullptr;
  RETURN_IF_ERROR(check(api_->GetTensorTypeAndShape(result, &info), "describe a tensor"));
  const Owned<OrtTensorTypeAndShapeInfo> owned(info, api_->ReleaseTensorTypeAndShapeInfo);
  Value found;
  RETURN_IF_ERROR(read_value(info, &found));
  if (found.type != mote::ort::kFloat || found.shape.size() != 2 || found.shape[0] < 0 ||
      found.shape[1] != static_cast<int64_t>(hidden_size_)) {
    return Status::error("vision.onnx gave features of shape %.80s, expected [?, %zu]",
                         to_string(found.shape).c_str(), hidden_size_);
  }
  void* data = nullptr;
  RETURN_IF_ERROR(check(api_->GetTensorMutableData(result, &data), "read a tensor"));
  const auto* values = static_cast<const float*>(data);
  features->insert(features->end(), values, values + static_cast<size_t>(found.shape[0]) * hidden_size_);
  return Status::ok();
}

Status OnnxRuntimeSession::embed(const std::vector<int64_t>& ids, int64_t image_token_id,
                                 const std::vector<float>& features, std::vector<float>* embeddings) {
  embeddings->resize(ids.size() * hidden_size_);
  size_t taken = 0;
  for (const auto& [start, count] : chunks(ids.size(), kPrefillChunk)) {
    const int64_t* piece = ids.data() + start;
    const size_t rows =
        features.empty() ? 0 : static_cast<size_t>(std::count(piece, piece + count, image_token_id));
    if ((taken + rows) * hidden_size_ > features.size()) {
      return Status::error("the prompt has more image tokens than features, of which there are %zu",
                           features.size() / hidden_size_);
    }
    RETURN_IF_ERROR(embed_chunk(piece, count, features.data() + taken * hidden_size_, rows,
                                embeddings->data() + start * hidden_size_));
    taken += rows;
  }
  return Status::ok();
}

/// Embeddings [count, hidden] of as many ids, with `rows` rows of features for the image tokens among them.
Status OnnxRuntimeSession::embed_chunk(const int64_t* ids, size_t count, const float* features, size_t rows,
                                       float* embeddings) {
  const auto length = static_cast<int64_t>(count), hidden = static_cast<int64_t>(hidden_size_);
  Owned<OrtValue> id_tensor, feature_tensor, output;
  RETURN_IF_ERROR(make_tensor(const_cast<int64_t*>(ids), count * sizeof(int64_t), {1, length}, mote::ort::kInt64,
                              &id_tensor));
  // Without images it wants no rows, but memory all the same.
  float nothing = 0.0f;
  void* data = rows == 0 ? &nothing : const_cast<float*>(features);
  RETURN_IF_ERROR(make_tensor(data, rows * hidden_size_ * sizeof(float), {static_cast<int64_t>(rows), hidden},
                              mote::ort::kFloat, &feature_tensor));
  RETURN_IF_ERROR(make_tensor(embeddings, count * hidden_size_ * sizeof(float), {1, length, hidden}, mote::ort::kFloat,
                              &output));
  const char* input_names[] = {"input_ids", "image_features"};
  const OrtValue* inputs[] = {id_tensor.get(), feature_tensor.get()};
  const char* output_names[] = {"inputs_embeds"};
  OrtValue* outputs[] = {output.get()};
  return check(api_->Run(embedding_.session.get(), nullptr, input_names, inputs, embedding_.inputs.size(), output_names, 1,
                         outputs),
               "run embedding.onnx");
}

Status OnnxRuntimeSession::decode(const std::vector<float>& embeddings, std::vector<float>* logits) {
  const size_t total = embeddings.size() / hidden_size_;
  if (total == 0 || total > options_.context_length - position_) {
    return Status::error("%zu positions after %zu do not fit the context of %zu", total, position_,
                         options_.context_length);
  }
  for (const auto& [start, count] : chunks(total, kPrefillChunk)) {
    RETURN_IF_ERROR(append(embeddings.data() + start * hidden_size_, count));
  }
  *logits = logits_;
  return Status::ok();
}

Status OnnxRuntimeSession::append(const float* embeddings, size_t count) {
  const size_t total = position_ + count;
  Owned<OrtValue> input, mask;
  RETURN_IF_ERROR(make_tensor(const_cast<float*>(embeddings), count * hidden_size_ * sizeof(float),
                              {1, static_cast<int64_t>(count), static_cast<int64_t>(hidden_size_)}, mote::ort::kFloat,
                              &input));
  RETURN_IF_ERROR(make_tensor(mask_.data(), total * sizeof(int64_t), {1, static_cast<int64_t>(total)},
                              mote::ort::kInt64, &mask));
  RETURN_IF_ERROR(bind("inputs_embeds", true, input));
  RETURN_IF_ERROR(bind("attention_mask", true, mask));
  RETURN_IF_ERROR(check(api_->RunWithBinding(decoder_.session.get(), nullptr, binding_.get()), "run model.onnx"));
  position_ = total;
  return Status::ok();
}

/// The runtime adds a time and .json.
std::string OnnxRuntimeSession::trace_prefix(const Graph& graph) const {
  return options_.runtime_trace + ".unfinished-" + std::to_string(getpid()) + "-" + graph.name;
}

/// Has the runtime write the profile to a file, and says its name.
Status OnnxRuntimeSession::end_profile(Graph* graph, std::string* file) {
  graph->is_profiled = false;
  char* written = nullptr;
  RETURN_IF_ERROR(check(api_->SessionEndProfiling(graph->session.get(), allocator_, &written), "end its profile"));
  *file = written;
  return check(api_->AllocatorFree(allocator_, written), "free memory");
}

/// The decoder's under the name that was asked for, the others' beside it.
Status OnnxRuntimeSession::finish_runtime_trace() {
  for (Graph* graph : {&decoder_, &embedding_, &vision_}) {
    if (!graph->is_profiled) continue;
    std::string file;
    RETURN_IF_ERROR(end_profile(graph, &file));
    RETURN_IF_ERROR(publish_file(file, options_.runtime_trace + (graph == &decoder_ ? "" : "." + graph->name)));
  }
  return Status::ok();
}

/// After a failure, no unfinished profile stays behind.
OnnxRuntimeSession::~OnnxRuntimeSession() {
  for (Graph* graph : {&decoder_, &embedding_, &vision_}) {
    std::string file;
    if (graph->is_profiled && end_profile(graph, &file).is_ok()) unlink(file.c_str());
  }
}

}  // namespace

Status create_onnxruntime_session(std::unique_ptr<Session>* session) {
  *session = std::make_unique<OnnxRuntimeSession>();
  return Status::ok();
}

}  // namespace mote::runner
