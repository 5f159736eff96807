// Runs models of one operator each in ONNX Runtime with a given plugin, and writes their outputs down to the last bit:
//
//   run_models LIBONNXRUNTIME PLUGIN THREADS FOLDER NAME...
//
// Of each NAME it reads FOLDER/NAME.onnx and FOLDER/NAME.x (float32, the shape that the model says) and writes FOLDER/NAME.y (float32).
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "onnxruntime/ort_abi.h"

namespace {

const mote::ort::Api* api = nullptr;

[[noreturn]] void fail(const std::string& what, const char* why) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), why);
  std::exit(1);
}

void check(OrtStatus* status, const std::string& what) {
  if (status != nullptr) fail(what, api->GetErrorMessage(status));
}

std::vector<float> read(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail(path, "cannot be opened");
  std::vector<float> values;
  for (float value; std::fread(&value, sizeof value, 1, file) == 1;) values.push_back(value);
  std::fclose(file);
  return values;
}

void write(const std::string& path, const void* values, size_t count) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(values, sizeof(float), count, file) != count || std::fclose(file) != 0) {
    fail(path, "cannot be written");
  }
}

/// The sizes of a tensor, and how many values they make.
std::vector<int64_t> shape_of(const OrtTensorTypeAndShapeInfo* info, size_t* count) {
  size_t rank = 0;
  check(api->GetDimensionsCount(info, &rank), "rank");
  std::vector<int64_t> shape(rank);
  check(api->GetDimensions(info, shape.data(), rank), "shape");
  *count = 1;
  for (const int64_t size : shape) *count *= static_cast<size_t>(size);
  return shape;
}

void run(const OrtEnv* env, const OrtSessionOptions* options, const OrtMemoryInfo* memory, const std::string& stem) {
  OrtSession* session = nullptr;
  check(api->CreateSession(env, (stem + ".onnx").c_str(), options, &session), stem);
  OrtTypeInfo* type = nullptr;
  const OrtTensorTypeAndShapeInfo* input_info = nullptr;
  check(api->SessionGetInputTypeInfo(session, 0, &type), stem);
  check(api->CastTypeInfoToTensorInfo(type, &input_info), stem);
  size_t count = 0;
  const std::vector<int64_t> shape = shape_of(input_info, &count);
  std::vector<float> x = read(stem + ".x");
  if (x.size() != count) fail(stem, "x has not the size that the model says");

  OrtValue *input = nullptr, *output = nullptr;
  check(api->CreateTensorWithDataAsOrtValue(memory, x.data(), x.size() * sizeof(float), shape.data(), shape.size(),
                                            mote::ort::kFloat, &input), stem);
  const char *input_name = "x", *output_name = "y";
  check(api->Run(session, nullptr, &input_name, &input, 1, &output_name, 1, &output), stem);
  OrtTensorTypeAndShapeInfo* output_info = nullptr;
  void* values = nullptr;
  check(api->GetTensorTypeAndShape(output, &output_info), stem);
  check(api->GetTensorMutableData(output, &values), stem);
  shape_of(output_info, &count);
  write(stem + ".y", values, count);
  api->ReleaseTensorTypeAndShapeInfo(output_info);
  api->ReleaseTypeInfo(type);
  api->ReleaseValue(input);
  api->ReleaseValue(output);
  api->ReleaseSession(session);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) fail("run_models", "expected LIBONNXRUNTIME PLUGIN THREADS FOLDER NAME...");
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(argv[1], dlerror());
  const auto get_base = reinterpret_cast<const mote::ort::ApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) fail(argv[1], dlerror());
  api = get_base()->GetApi(mote::ort::kApiVersion);
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(api->CreateEnv(mote::ort::kLogFatal, "run_models", &env), "environment");
  check(api->CreateSessionOptions(&options), "options");
  check(api->SetIntraOpNumThreads(options, std::atoi(argv[3])), "threads");
  check(api->RegisterCustomOpsLibrary_V2(options, argv[2]), argv[2]);
  check(api->CreateCpuMemoryInfo(mote::ort::kDeviceAllocator, mote::ort::kMemTypeDefault, &memory), "memory");
  for (int i = 5; i < argc; ++i) run(env, options, memory, std::string(argv[4]) + "/" + argv[i]);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return 0;
}
