// The part of ONNX Runtime's C ABI that the plugin and the runner (runtime/runner) use, declared by us, so that building needs no ONNX Runtime
// headers (no Python package ships them). The ABI only ever grows at its ends, so a slot keeps its number in all later
// versions.
// ort_abi_check.cpp compares every offset, signature and constant here with the official header where one is at hand.
#pragma once

#include <cstddef>
#include <cstdint>

// The runtime's opaque types, under their own names: then a signature below is the same C++ type as the official one.
struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtIoBinding;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtOpAttr;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace mote::ort {

/// First version with KernelContext_ParallelFor and InferOutputShapeFn. Every later ONNX Runtime serves it too.
inline constexpr uint32_t kApiVersion = 17;
inline constexpr const char* kFirstRuntimeVersion = "1.17";
/// Older ones end the process when they infer the shapes of a node whose optional input is the empty name.
inline constexpr int kFirstMinorVersionThatInfersBesideAbsentInputs = 24;

// Values of the official enums, which are ints in the ABI.
inline constexpr int kFail = 1;                 // OrtErrorCode
inline constexpr int kInvalidArgument = 2;      // OrtErrorCode
inline constexpr int kFloat = 1;                // ONNXTensorElementDataType
inline constexpr int kUint8 = 2;                // ONNXTensorElementDataType
inline constexpr int kInt8 = 3;                 // ONNXTensorElementDataType
inline constexpr int kInt64 = 7;                // ONNXTensorElementDataType
inline constexpr int kBfloat16 = 16;            // ONNXTensorElementDataType
inline constexpr int kIntegerAttribute = 1;     // OrtOpAttrType
inline constexpr int kDeviceAllocator = 0;      // OrtAllocatorType
inline constexpr int kArenaAllocator = 1;       // OrtAllocatorType
inline constexpr int kMemTypeDefault = 0;       // OrtMemType
inline constexpr int kRequired = 0;             // OrtCustomOpInputOutputCharacteristic
inline constexpr int kOptional = 1;             // OrtCustomOpInputOutputCharacteristic
inline constexpr int kLogFatal = 4;             // OrtLoggingLevel

using Slot = void (*)();

/// OrtApi up to version 17: the functions used here, and gaps of unnamed slots between them.
struct Api {
  OrtStatus* (*CreateStatus)(int code, const char* message);
  Slot gap_1[1];
  const char* (*GetErrorMessage)(const OrtStatus* status);
  OrtStatus* (*CreateEnv)(int log_severity, const char* log_id, OrtEnv** out);
  Slot gap_4[2];
  OrtStatus* (*DisableTelemetryEvents)(const OrtEnv* env);
  OrtStatus* (*CreateSession)(const OrtEnv* env, const char* path, const OrtSessionOptions* options, OrtSession** out);
  Slot gap_8[1];
  OrtStatus* (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
                    const OrtValue* const* inputs, size_t num_inputs, const char* const* output_names,
                    size_t num_outputs, OrtValue** outputs);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);
  Slot gap_11[3];
  OrtStatus* (*EnableProfiling)(OrtSessionOptions* options, const char* file_prefix);
  Slot gap_15[7];
  OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions* options, int severity);
  Slot gap_23[1];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads);
  Slot gap_25[1];
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const struct CustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  Slot gap_29[1];
  OrtStatus* (*SessionGetInputCount)(const OrtSession* session, size_t* out);
  OrtStatus* (*SessionGetOutputCount)(const OrtSession* session, size_t* out);
  Slot gap_32[1];
  OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession* session, size_t index, OrtTypeInfo** out);
  OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession* session, size_t index, OrtTypeInfo** out);
  Slot gap_35[1];
  OrtStatus* (*SessionGetInputName)(const OrtSession* session, size_t index, OrtAllocator* allocator, char** out);
  OrtStatus* (*SessionGetOutputName)(const OrtSession* session, size_t index, OrtAllocator* allocator, char** out);
  Slot gap_38[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* info, void* data, size_t bytes,
                                               const int64_t* shape, size_t rank, int type, OrtValue** out);
  Slot gap_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);
  Slot gap_52[3];
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** out);
  Slot gap_56[1];
  OrtStatus* (*CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** out);
  OrtStatus* (*SetTensorElementType)(OrtTensorTypeAndShapeInfo* info, int type);
  OrtStatus* (*SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dimensions, size_t length);
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, int* out);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t length);
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** out, size_t length);
  Slot gap_64[1];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  Slot gap_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator_type, int mem_type, OrtMemoryInfo** out);
  Slot gap_70[5];
  OrtStatus* (*AllocatorAlloc)(OrtAllocator* allocator, size_t size, void** out);
  OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* memory);
  Slot gap_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** out);
  Slot gap_79[7];
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name, char* out, size_t* size);
  Slot gap_88[2];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** out);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                                        OrtValue** out);
  void (*ReleaseEnv)(OrtEnv* env);
  void (*ReleaseStatus)(OrtStatus* status);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* info);
  void (*ReleaseSession)(OrtSession* session);
  void (*ReleaseValue)(OrtValue* value);
  Slot gap_97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo* info);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
  Slot gap_102[8];
  OrtStatus* (*SessionEndProfiling)(OrtSession* session, OrtAllocator* allocator, char** out);
  Slot gap_111[19];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);
  Slot gap_131[1];
  void (*ReleaseAllocator)(OrtAllocator* allocator);
  OrtStatus* (*RunWithBinding)(OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding);
  OrtStatus* (*CreateIoBinding)(OrtSession* session, OrtIoBinding** out);
  void (*ReleaseIoBinding)(OrtIoBinding* binding);
  OrtStatus* (*BindInput)(OrtIoBinding* binding, const char* name, const OrtValue* value);
  OrtStatus* (*BindOutput)(OrtIoBinding* binding, const char* name, const OrtValue* value);
  Slot gap_138[90];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options, const char* library);
  Slot gap_229[3];
  OrtStatus* (*KernelInfo_GetInputName)(const OrtKernelInfo* info, size_t index, char* out, size_t* size);
  Slot gap_233[4];
  OrtStatus* (*HasSessionConfigEntry)(const OrtSessionOptions* options, const char* key, int* out);
  Slot gap_238[6];
  OrtStatus* (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);
  Slot gap_245[4];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                  const OrtValue** out);
  Slot gap_250[3];
  OrtStatus* (*KernelContext_GetAllocator)(const OrtKernelContext* context, const OrtMemoryInfo* info,
                                           OrtAllocator** out);
  Slot gap_254[14];
  OrtStatus* (*ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                    OrtTensorTypeAndShapeInfo** out);
  OrtStatus* (*ShapeInferContext_GetAttribute)(const OrtShapeInferContext* context, const char* name,
                                               const OrtOpAttr** out);
  OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                     const OrtTensorTypeAndShapeInfo* info);
  OrtStatus* (*SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names, size_t length);
  OrtStatus* (*ReadOpAttr)(const OrtOpAttr* attribute, int type, void* data, size_t size, size_t* out);
  Slot gap_273[1];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*task)(void* arg, size_t index),
                                          size_t count, size_t num_batch, void* arg);
};

/// Entry point of the ABI: what RegisterCustomOps is handed, and OrtGetApiBase() returns.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

/// OrtCustomOp as of version 17. `version` tells the runtime how many of the callbacks exist.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const OrtKernelInfo* info) = nullptr;
  const char* (*GetName)(const CustomOp* op) = nullptr;
  const char* (*GetExecutionProviderType)(const CustomOp* op) = nullptr;
  int (*GetInputType)(const CustomOp* op, size_t index) = nullptr;
  size_t (*GetInputTypeCount)(const CustomOp* op) = nullptr;
  int (*GetOutputType)(const CustomOp* op, size_t index) = nullptr;
  size_t (*GetOutputTypeCount)(const CustomOp* op) = nullptr;
  void (*KernelCompute)(void* kernel, OrtKernelContext* context) = nullptr;
  void (*KernelDestroy)(void* kernel) = nullptr;
  int (*GetInputCharacteristic)(const CustomOp* op, size_t index) = nullptr;
  int (*GetOutputCharacteristic)(const CustomOp* op, size_t index) = nullptr;
  int (*GetInputMemoryType)(const CustomOp* op, size_t index) = nullptr;
  int (*GetVariadicInputMinArity)(const CustomOp* op) = nullptr;
  int (*GetVariadicInputHomogeneity)(const CustomOp* op) = nullptr;
  int (*GetVariadicOutputMinArity)(const CustomOp* op) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op) = nullptr;
  OrtStatus* (*CreateKernelV2)(const CustomOp* op, const Api* api, const OrtKernelInfo* info, void** kernel) = nullptr;
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context) = nullptr;
  OrtStatus* (*InferOutputShapeFn)(const CustomOp* op, OrtShapeInferContext* context) = nullptr;
  int (*GetStartVersion)(const CustomOp* op) = nullptr;
  int (*GetEndVersion)(const CustomOp* op) = nullptr;
  // Version 18 only: never called for ours, present because the runtime may copy or read a whole OrtCustomOp.
  Slot since_version_18[4] = {};
};

}  // namespace mote::ort
