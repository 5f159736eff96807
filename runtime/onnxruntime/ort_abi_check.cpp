// Compiles only if ort_abi.h agrees with the official header (-DONNXRUNTIME_INCLUDE_DIR=...). There is nothing to run.
#include <onnxruntime_c_api.h>

#include <tuple>
#include <type_traits>

#include "ort_abi.h"

namespace {

namespace ours = mote::ort;

template <typename Type>
constexpr bool is_enum_as_int() {
  if constexpr (std::is_enum_v<Type>) return sizeof(Type) == sizeof(int);
  return false;
}

/// Equal in the ABI: the same type, an enum declared as int, or one of the structs that ort_abi.h declares anew.
template <typename Ours, typename Official>
struct SameInAbi
    : std::bool_constant<std::is_same_v<Ours, Official> || (std::is_same_v<Ours, int> && is_enum_as_int<Official>())> {};
template <typename Official>
struct SameInAbi<int*, Official*> : std::bool_constant<std::is_same_v<int, Official> || is_enum_as_int<Official>()> {};
template <>
struct SameInAbi<const ours::Api*, const OrtApi*> : std::true_type {};
template <>
struct SameInAbi<const ours::CustomOp*, const OrtCustomOp*> : std::true_type {};

template <typename Function>
struct Signature;
template <typename Result, typename... Args>
struct Signature<Result (*)(Args...)> {
  using types = std::tuple<Result, Args...>;
};
template <typename Result, typename... Args>
struct Signature<Result (*)(Args...) noexcept> {
  using types = std::tuple<Result, Args...>;
};

template <typename Ours, typename Official>
struct SameTypes : std::false_type {};
template <typename... Ours, typename... Official>
struct SameTypes<std::tuple<Ours...>, std::tuple<Official...>> {
  static constexpr bool compare() {
    if constexpr (sizeof...(Ours) == sizeof...(Official)) {
      return (SameInAbi<Ours, Official>::value && ...);
    }
    return false;
  }
  static constexpr bool value = compare();
};

template <typename Ours, typename Official>
inline constexpr bool kSameSignature =
    SameTypes<typename Signature<Ours>::types, typename Signature<Official>::types>::value;

#define CHECK_FUNCTION(our_struct, official_struct, name)                                               \
  static_assert(offsetof(ours::our_struct, name) == offsetof(official_struct, name), "offset of " #name); \
  static_assert(kSameSignature<decltype(ours::our_struct::name), decltype(official_struct::name)>, "signature of " #name)
#define CHECK_API(name) CHECK_FUNCTION(Api, OrtApi, name)
#define CHECK_OP(name) CHECK_FUNCTION(CustomOp, OrtCustomOp, name)

static_assert(ORT_API_VERSION >= ours::kApiVersion, "the official header is older than the API this plugin asks for");

CHECK_FUNCTION(ApiBase, OrtApiBase, GetApi);
CHECK_FUNCTION(ApiBase, OrtApiBase, GetVersionString);

CHECK_API(CreateStatus);
CHECK_API(GetErrorMessage);
CHECK_API(CreateEnv);
CHECK_API(DisableTelemetryEvents);
CHECK_API(CreateSession);
CHECK_API(Run);
CHECK_API(CreateSessionOptions);
CHECK_API(EnableProfiling);
CHECK_API(SetSessionLogSeverityLevel);
CHECK_API(SetIntraOpNumThreads);
CHECK_API(CreateCustomOpDomain);
CHECK_API(CustomOpDomain_Add);
CHECK_API(AddCustomOpDomain);
CHECK_API(SessionGetInputCount);
CHECK_API(SessionGetOutputCount);
CHECK_API(SessionGetInputTypeInfo);
CHECK_API(SessionGetOutputTypeInfo);
CHECK_API(SessionGetInputName);
CHECK_API(SessionGetOutputName);
CHECK_API(CreateTensorWithDataAsOrtValue);
CHECK_API(GetTensorMutableData);
CHECK_API(CastTypeInfoToTensorInfo);
CHECK_API(CreateTensorTypeAndShapeInfo);
CHECK_API(SetTensorElementType);
CHECK_API(SetDimensions);
CHECK_API(GetTensorElementType);
CHECK_API(GetDimensionsCount);
CHECK_API(GetDimensions);
CHECK_API(GetSymbolicDimensions);
CHECK_API(GetTensorTypeAndShape);
CHECK_API(CreateCpuMemoryInfo);
CHECK_API(AllocatorAlloc);
CHECK_API(AllocatorFree);
CHECK_API(GetAllocatorWithDefaultOptions);
CHECK_API(KernelInfoGetAttribute_int64);
CHECK_API(KernelInfoGetAttribute_string);
CHECK_API(KernelContext_GetInput);
CHECK_API(KernelContext_GetOutput);
CHECK_API(ReleaseEnv);
CHECK_API(ReleaseStatus);
CHECK_API(ReleaseMemoryInfo);
CHECK_API(ReleaseSession);
CHECK_API(ReleaseValue);
CHECK_API(ReleaseTypeInfo);
CHECK_API(ReleaseTensorTypeAndShapeInfo);
CHECK_API(ReleaseSessionOptions);
CHECK_API(ReleaseCustomOpDomain);
CHECK_API(SessionEndProfiling);
CHECK_API(AddSessionConfigEntry);
CHECK_API(ReleaseAllocator);
CHECK_API(RunWithBinding);
CHECK_API(CreateIoBinding);
CHECK_API(ReleaseIoBinding);
CHECK_API(BindInput);
CHECK_API(BindOutput);
CHECK_API(RegisterCustomOpsLibrary_V2);
CHECK_API(KernelInfo_GetInputName);
CHECK_API(HasSessionConfigEntry);
CHECK_API(KernelInfo_GetNodeName);
CHECK_API(KernelInfoGetConstantInput_tensor);
CHECK_API(KernelContext_GetAllocator);
CHECK_API(ShapeInferContext_GetInputTypeShape);
CHECK_API(ShapeInferContext_GetAttribute);
CHECK_API(ShapeInferContext_SetOutputTypeShape);
CHECK_API(SetSymbolicDimensions);
CHECK_API(ReadOpAttr);
CHECK_API(KernelContext_ParallelFor);

static_assert(offsetof(ours::CustomOp, version) == offsetof(OrtCustomOp, version));
static_assert(std::is_same_v<decltype(ours::CustomOp::version), decltype(OrtCustomOp::version)>);
CHECK_OP(CreateKernel);
CHECK_OP(GetName);
CHECK_OP(GetExecutionProviderType);
CHECK_OP(GetInputType);
CHECK_OP(GetInputTypeCount);
CHECK_OP(GetOutputType);
CHECK_OP(GetOutputTypeCount);
CHECK_OP(KernelCompute);
CHECK_OP(KernelDestroy);
CHECK_OP(GetInputCharacteristic);
CHECK_OP(GetOutputCharacteristic);
CHECK_OP(GetInputMemoryType);
CHECK_OP(GetVariadicInputMinArity);
CHECK_OP(GetVariadicInputHomogeneity);
CHECK_OP(GetVariadicOutputMinArity);
CHECK_OP(GetVariadicOutputHomogeneity);
CHECK_OP(CreateKernelV2);
CHECK_OP(KernelComputeV2);
CHECK_OP(InferOutputShapeFn);
CHECK_OP(GetStartVersion);
CHECK_OP(GetEndVersion);
static_assert(offsetof(ours::CustomOp, since_version_18) == offsetof(OrtCustomOp, GetMayInplace));

static_assert(ours::kFail == ORT_FAIL);
static_assert(ours::kInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(ours::kFloat == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(ours::kUint8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(ours::kInt8 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
static_assert(ours::kInt64 == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(ours::kBfloat16 == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
static_assert(ours::kIntegerAttribute == ORT_OP_ATTR_INT);
static_assert(ours::kDeviceAllocator == OrtDeviceAllocator);
static_assert(ours::kArenaAllocator == OrtArenaAllocator);
static_assert(ours::kMemTypeDefault == OrtMemTypeDefault);
static_assert(ours::kRequired == INPUT_OUTPUT_REQUIRED);
static_assert(ours::kOptional == INPUT_OUTPUT_OPTIONAL);
static_assert(ours::kLogFatal == ORT_LOGGING_LEVEL_FATAL);

}  // namespace
