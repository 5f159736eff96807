#include "session.h"

#include <dlfcn.h>

#include <iterator>

#include "file.h"
#include "onnxruntime_session.h"

namespace mote::runner {
namespace {

/// The half for ExecuTorch is a library of its own, since it cannot be loaded where ExecuTorch is not installed.
Status create_executorch(std::unique_ptr<Session>* session) {
  constexpr const char* kLibrary = "libmote_runner_executorch.so";
  const std::string path = find_library({"."}, kLibrary);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Status::error("the runner's half for ExecuTorch cannot be loaded (%.230s)", dlerror());
  }
  auto* create = reinterpret_cast<Session* (*)()>(dlsym(library, "mote_create_executorch_session"));
  if (create == nullptr) return Status::error("%s is not of this runner: install both together", kLibrary);
  session->reset(create());
  return Status::ok();
}

constexpr Runtime kRuntimes[] = {
    {"onnxruntime", "libmote_ort.so", create_onnxruntime_session},
    {"executorch", "libmote_executorch.so", create_executorch},
};

}  // namespace

const Runtime* find_runtime(const std::string& name) {
  for (const Runtime& runtime : kRuntimes) {
    if (name == runtime.name) return &runtime;
  }
  return nullptr;
}

std::string runtime_names() {
  std::string names;
  for (const Runtime& runtime : kRuntimes) names += (names.empty() ? "" : " or ") + std::string(runtime.name);
  return names;
}

std::string plugin_path(const Runtime& runtime, const SessionOptions& options) {
  // Beside the runner, or as the Python package has them: bin/ and lib/.
  return options.plugin.empty() ? find_library({".", "../lib"}, runtime.plugin) : options.plugin;
}

}  // namespace mote::runner
