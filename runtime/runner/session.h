// What a runtime must offer to the runner. A runtime is one file with a Session, and a line in session.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mote/status.h"

namespace mote::runner {

struct SessionOptions {
  std::string model_folder;
  std::string runtime_library;  // of ONNX Runtime; empty: searched for
  std::string plugin;           // empty: a model that needs none
  std::string runtime_trace;    // where the runtime's own profile goes, empty: it is not switched on
  int threads = 1;              // 0: as many as the runtime likes
  size_t context_length = 0;  // positions that the KV cache must hold
  bool takes_images = false;
  size_t channels = 0, height = 0, width = 0;  // of each image
};

/// One loaded model with its KV cache and the position in it. Not for several threads at once. After `open` failed it may only be
/// destroyed, after another failure it wants a new sequence.
class Session {
 public:
  virtual ~Session() = default;

  /// Loads the model, compares its shapes with what the options say, and gets its memory. Once, and before everything else.
  virtual Status open(const SessionOptions& options) = 0;

  virtual std::string runtime_version() const = 0;
  virtual size_t hidden_size() const = 0;
  virtual size_t vocab_size() const = 0;

  /// Features float32 [rows, hidden] of pixels float32 [num_images, channels, height, width], for a session that takes images.
  virtual Status encode_images(const float* pixels, size_t num_images, std::vector<float>* features) = 0;

  /// Embeddings float32 [ids, hidden]; the image tokens take the rows of `features`, of which there are as many.
  virtual Status embed(const std::vector<int64_t>& ids, int64_t image_token_id, const std::vector<float>& features,
                       std::vector<float>* embeddings) = 0;

  /// Appends embeddings float32 [count, hidden], count at least 1; logits float32 [vocab] of the last position. The caller keeps
  /// to the context length.
  virtual Status decode(const std::vector<float>& embeddings, std::vector<float>* logits) = 0;

  /// Starts a new sequence.
  virtual void reset() = 0;

  /// Writes the runtime's own profile, if it was switched on.
  virtual Status finish_runtime_trace() = 0;
};

struct Runtime {
  const char* name;
  const char* plugin;  // the library with our operators, which also records their inner phases
  Status (*create)(std::unique_ptr<Session>* session);
};

/// Null if there is none of this name.
const Runtime* find_runtime(const std::string& name);

/// Their names, as in "a or b".
std::string runtime_names();

/// The plugin that a session of this runtime will load.
std::string plugin_path(const Runtime& runtime, const SessionOptions& options);

}  // namespace mote::runner
