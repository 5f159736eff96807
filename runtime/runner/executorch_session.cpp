// ExecuTorch: `model.pte` of a folder, mapped, through the methods that ExecuTorch's own LLM runners call. The KV cache is inside the
// program and starts anew at position 0.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/platform/platform.h>

#include "check.h"
#include "chunks.h"
#include "file.h"
#include "session.h"

// The package has the library of the thread pool without its header. This is the part of it that is used.
namespace executorch::extension::threadpool {
class ThreadPool final {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace mote::runner {
namespace {

using ::executorch::aten::ScalarType;
using ::executorch::etdump::ETDumpGen;
using ::executorch::extension::from_blob;
using ::executorch::extension::Module;
using ::executorch::runtime::Error;
using ::executorch::runtime::EValue;
using ::executorch::runtime::HierarchicalAllocator;
using ::executorch::runtime::Span;
using ::executorch::runtime::TensorInfo;

constexpr int32_t kAny = -1;

/// The memory that a method was planned for, activations and KV cache. ExecuTorch's own is cleared, and so resident, from the start;
/// pages of the system's are there when they are written to: a long context costs what is used of it.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const auto& buffer : buffers_) munmap(buffer.data(), buffer.size());
  }

  Status reserve(const char* method, const ::executorch::runtime::MethodMeta& meta);
  HierarchicalAllocator* allocator() { return allocator_.get(); }

 private:
  std::vector<Span<uint8_t>> buffers_;
  std::unique_ptr<HierarchicalAllocator> allocator_;
};

Status Arena::reserve(const char* method, const ::executorch::runtime::MethodMeta& meta) {
  for (size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
    const auto bytes = meta.memory_planned_buffer_size(i);
    if (!bytes.ok() || *bytes < 0) return Status::error("model.pte: %s does not say what memory it needs", method);
    const auto size = static_cast<size_t>(std::max<int64_t>(*bytes, 1));
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
      return Status::error("no memory for %s: it was planned for %zu bytes; export with a shorter context", method, size);
    }
    buffers_.emplace_back(static_cast<uint8_t*>(pages), size);
  }
  allocator_ = std::make_unique<HierarchicalAllocator>(Span<Span<uint8_t>>(buffers_.data(), buffers_.size()));
  return Status::ok();
}

class ExecuTorchSession : public Session {
 public:
  Status open(const SessionOptions& options) override;
  std::string runtime_version() const override { return MOTE_EXECUTORCH_VERSION; }
  size_t hidden_size() const override { return hidden_size_; }
  size_t vocab_size() const override { return vocab_size_; }
  Status encode_images(const float* pixels, size_t num_images, std::vector<float>* features) override;
  Status embed(const std::vector<int64_t>& ids, int64_t image_token_id, const std::vector<float>& features,
               std::vector<float>* embeddings) override;
  Status decode(const std::vector<float>& embeddings, std::vector<float>* logits) override;
  void reset() override { position_ = 0; }
  Status finish_runtime_trace() override;

 private:
  Status load_plugin() const;
  Status load_method(const char* method, std::vector<int32_t> input, std::vector<int32_t> output,
                     std::vector<int32_t>* found);
  Status check_tensor(const char* method, const char* what, const TensorInfo& info,
                      const std::vector<int32_t>& expected) const;
  Status read_constant(const char* method, int64_t least, size_t* value);
  Status run(const char* method, const std::vector<EValue>& inputs, const std::vector<int32_t>& expected,
             std::vector<float>* out);

  SessionOptions options_;
  std::map<std::string, Arena> arenas_;  // outlive the module
  std::unique_ptr<Module> module_;
  ETDumpGen* tracer_ = nullptr;  // the module's
  size_t hidden_size_ = 0;
  size_t vocab_size_ = 0;
  size_t features_per_image_ = 0;
  size_t chunk_ = 0;
  size_t position_ = 0;
};

std::string to_string(const int32_t* sizes, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + (sizes[i] < 0 ? "?" : std::to_string(sizes[i]));
  return text + "]";
}

/// What ExecuTorch logs is for its developers, except the last error, which says more than the code that comes back.
class Log {
 public:
  static void emit(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message,
                   size_t length) {
    if (level == kFatal) std::fprintf(stderr, "mote: executorch ends the process: %.*s\n",
                                       static_cast<int>(length), message);
    if (level != kError) return;
    const std::lock_guard<std::mutex> lock(mutex());
    last_error().assign(message, length);
  }
  static std::string take_error() {
    const std::lock_guard<std::mutex> lock(mutex());
    return std::exchange(last_error(), std::string());
  }

 private:
  static std::mutex& mutex() {
    static auto& mutex = *new std::mutex;  // never destroyed: other threads may log to the end
    return mutex;
  }
  static std::string& last_error() {
    static auto& text = *new std::string;
    return text;
  }
};

Status failed(const char* what, const char* method, Error error) {
  const std::string reason = Log::take_error();
  return Status::error("executorch cannot %s %s: %s (code 0x%x)%s%.180s", what, method,
                       ::executorch::runtime::to_string(error), static_cast<unsigned>(error),
                       reason.empty() ? "" : "; ", reason.c_str());
}

/// Loading it registers the operators.
Status ExecuTorchSession::load_plugin() const {
  if (options_.plugin.empty()) return Status::ok();
  if (dlopen(options_.plugin.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return Status::ok();
  return Status::error("the plugin cannot be loaded (%.230s)", dlerror());
}

Status ExecuTorchSession::open(const SessionOptions& options) {
  options_ = options;
  ::executorch::runtime::register_pal(::executorch::runtime::PalImpl::create(Log::emit, "mote"));
  RETURN_IF_ERROR(load_plugin());
  auto* threads = ::executorch::extension::threadpool::get_threadpool();
  const auto wanted = static_cast<uint32_t>(options.threads);
  if (threads == nullptr ||
      (wanted > 0 && threads->get_thread_count() != wanted && !threads->_unsafe_reset_threadpool(wanted))) {
    return Status::error("executorch cannot make a pool of %d threads", options.threads);
  }
  const std::string path = options.model_folder + "/model.pte";
  if (!is_file(path)) return Status::error("%.250s does not exist: expected an export for executorch", path.c_str());
  std::unique_ptr<ETDumpGen> tracer;
  if (!options.runtime_trace.empty()) tracer = std::make_unique<ETDumpGen>();
  tracer_ = tracer.get();
  module_ = std::make_unique<Module>(path, Module::LoadMode::Mmap, std::move(tracer));
  // The whole structure: ExecuTorch trusts every offset in it afterwards.
  const Error error = module_->load(::executorch::runtime::Program::Verification::InternalConsistency);
  if (error != Error::Ok) return failed("load", "model.pte", error);

  std::vector<int32_t> shape;
  RETURN_IF_ERROR(load_method("text_decoder", {1, kAny, kAny}, {1, kAny}, &shape));
  vocab_size_ = static_cast<size_t>(shape[1]);
  RETURN_IF_ERROR(load_method("token_embedding", {1, kAny}, {1, kAny, kAny}, &shape));
  hidden_size_ = static_cast<size_t>(shape[2]);
  RETURN_IF_ERROR(load_method("text_decoder", {1, kAny, shape[2]}, {1, kAny}, &shape));
  if (options.takes_images) {
    const auto size = [](size_t value) { return static_cast<int32_t>(value); };
    RETURN_IF_ERROR(load_method("vision_encoder", {1, size(options.channels), size(options.height), size(options.width)},
                                {1, kAny, size(hidden_size_)}, &shape));
    features_per_image_ = static_cast<size_t>(shape[1]);
  }
  size_t context = 0;
  RETURN_IF_ERROR(read_constant("get_max_seq_len", 1, &chunk_));
  chunk_ = std::min(chunk_, kPrefillChunk);
  return read_constant("get_max_context_len", static_cast<int64_t>(options.context_length), &context);
}

Status ExecuTorchSession::check_tensor(const char* method, const char* what, const TensorInfo& info,
                                       const std::vector<int32_t>& expected) const {
  const auto sizes = info.sizes();
  bool fits = sizes.size() == expected.size();
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    fits = sizes[i] >= 1 && (expected[i] == kAny || sizes[i] == expected[i]);
  }
  if (fits) return Status::ok();
  return Status::error("model.pte: the %s of %s has shape %.80s, expected %.80s", what, method,
                       to_string(sizes.data(), sizes.size()).c_str(),
                       to_string(expected.data(), expected.size()).c_str());
}

/// Loads a method and compares its first input and its output with what we use; the output's shape is the largest planned for.
Status ExecuTorchSession::load_method(const char* method, std::vector<int32_t> input, std::vector<int32_t> output,
                                      std::vector<int32_t>* found) {
  const auto meta = module_->method_meta(method);
  if (!meta.ok()) return Status::error("model.pte has no method %s: expected an export of mote", method);
  const auto in = meta->input_tensor_meta(0), out = meta->output_tensor_meta(0);
  if (!in.ok() || !out.ok()) return Status::error("model.pte: %s takes or returns no tensor", method);
  RETURN_IF_ERROR(check_tensor(method, "input", *in, input));
  RETURN_IF_ERROR(check_tensor(method, "output", *out, output));
  const ScalarType type = std::strcmp(method, "token_embedding") == 0 ? ScalarType::Long : ScalarType::Float;
  if (in->scalar_type() != type || out->scalar_type() != ScalarType::Float) {
    return Status::error("model.pte: %s takes or returns values of another type than exports of mote", method);
  }
  found->assign(out->sizes().begin(), out->sizes().end());
  if (module_->is_method_loaded(method)) return Status::ok();
  Arena& arena = arenas_[method];
  RETURN_IF_ERROR(arena.reserve(method, *meta));
  const Error error = module_->load_method(method, arena.allocator(), tracer_);
  return error == Error::Ok ? Status::ok() : failed("load", method, error);
}

Status ExecuTorchSession::read_constant(const char* method, int64_t least, size_t* value) {
  const auto result = module_->execute(method);
  if (!result.ok()) return failed("run", method, result.error());
  if (result->size() != 1 || !result->front().isInt() || result->front().toInt() < least) {
    return Status::error("model.pte: %s is not a number of at least %lld", method, static_cast<long long>(least));
  }
  *value = static_cast<size_t>(result->front().toInt());
  return Status::ok();
}

/// Appends the result, whose shape must be the expected one, to *out.
Status ExecuTorchSession::run(const char* method, const std::vector<EValue>& inputs,
                              const std::vector<int32_t>& expected, std::vector<float>* out) {
  const auto result = module_->execute(method, inputs);
  if (!result.ok()) return failed("run", method, result.error());
  if (result->size() != 1 || !result->front().isTensor()) return Status::error("%s returned no tensor", method);
  const auto& tensor = result->front().toTensor();
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()) ||
      tensor.scalar_type() != ScalarType::Float) {
    return Status::error("%s returned the shape %.80s, expected %.80s", method,
                         to_string(sizes.data(), sizes.size()).c_str(),
                         to_string(expected.data(), expected.size()).c_str());
  }
  const float* values = tensor.const_data_ptr<float>();
  out->insert(out->end(), values, values + tensor.numel());
  return Status::ok();
}

Status ExecuTorchSession::encode_images(const float* pixels, size_t num_images, std::vector<float>* features) {
  features->clear();
  const auto size = [](size_t value) { return static_cast<int32_t>(value); };
  const std::vector<int32_t> shape = {1, size(options_.channels), size(options_.height), size(options_.width)};
  const size_t values = options_.channels * options_.height * options_.width;
  for (size_t i = 0; i < num_images; ++i) {
    const auto image = from_blob(const_cast<float*>(pixels) + i * values, shape, ScalarType::Float);
    RETURN_IF_ERROR(run("vision_encoder", {*image}, {1, size(features_per_image_), size(hidden_size_)}, features));
  }
  return Status::ok();
}

Status ExecuTorchSession::embed(const std::vector<int64_t>& ids, int64_t image_token_id,
                                const std::vector<float>& features, std::vector<float>* embeddings) {
  embeddings->clear();
  for (const Chunk& chunk : chunks(ids.size(), chunk_)) {
    const auto count = static_cast<int32_t>(chunk.count);
    const auto piece = from_blob(const_cast<int64_t*>(ids.data()) + chunk.start, {1, count}, ScalarType::Long);
    RETURN_IF_ERROR(run("token_embedding", {*piece}, {1, count, static_cast<int32_t>(hidden_size_)}, embeddings));
  }
  auto row = features.begin();
  for (size_t i = 0; i < ids.size() && row != features.end(); ++i) {
    if (ids[i] != image_token_id) continue;
    std::copy_n(row, hidden_size_, embeddings->begin() + static_cast<std::ptrdiff_t>(i * hidden_size_));
    row += static_cast<std::ptrdiff_t>(hidden_size_);
  }
  return Status::ok();
}

Status ExecuTorchSession::decode(const std::vector<float>& embeddings, std::vector<float>* logits) {
  const size_t total = embeddings.size() / hidden_size_;
  if (total == 0 || total > options_.context_length - position_) {
    return Status::error("%zu positions after %zu do not fit the context of %zu", total, position_,
                         options_.context_length);
  }
  for (const auto& [start, count] : chunks(total, chunk_)) {
    std::vector<int64_t> positions(count);
    std::iota(positions.begin(), positions.end(), static_cast<int64_t>(position_));
    const auto piece = from_blob(const_cast<float*>(embeddings.data()) + start * hidden_size_,
                                 {1, static_cast<int32_t>(count), static_cast<int32_t>(hidden_size_)}, ScalarType::Float);
    const auto where = from_blob(positions.data(), {static_cast<int32_t>(count)}, ScalarType::Long);
    logits->clear();
    RETURN_IF_ERROR(run("text_decoder", {*piece, *where}, {1, static_cast<int32_t>(vocab_size_)}, logits));
    position_ += count;
  }
  return Status::ok();
}

Status ExecuTorchSession::finish_runtime_trace() {
  if (tracer_ == nullptr) return Status::ok();
  const auto result = tracer_->get_etdump_data();
  if (result.buf == nullptr || result.size == 0) return Status::error("executorch has recorded nothing");
  const Status status = write_file(options_.runtime_trace, result.buf, result.size);
  std::free(result.buf);
  return status;
}

}  // namespace
}  // namespace mote::runner

/// What the runner looks up in this library.
extern "C" __attribute__((visibility("default"))) mote::runner::Session* mote_create_executorch_session() {
  return new mote::runner::ExecuTorchSession();
}
