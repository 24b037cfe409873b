// The part of ONNX Runtime's C interface that the engine calls, declared here so that building it
// takes no header of ONNX Runtime.
//
// A library is handed an OrtApiBase, whose GetApi(version) returns a table of function pointers.
// The table only ever grows at its end, so a function is named by its slot and its signature, and
// what was compiled against 1.23 runs in every later release. Structs that the runtime reads carry
// the version they were filled for.
#pragma once
#include <cstddef>
#include <cstdint>

namespace obert::ort {

constexpr uint32_t kOldestApi = 23;   // the first with plugin execution providers: ONNX Runtime 1.23

struct Status; struct Value; struct TypeInfo; struct TensorInfo; struct KernelContext; struct SessionOptions;
struct Logger; struct KeyValues; struct HardwareDevice; struct EpDevice; struct Graph; struct Node;
struct ValueInfo; struct OpAttribute; struct GraphSupport; struct NodeComputeContext; struct MemoryInfo;
struct Allocator; struct DataTransfer; struct SyncStream; struct MemoryDevice;

// ONNX TensorProto.DataType, as ONNX Runtime numbers its element types.
enum ElementType : int { kFloat = 1, kUInt8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBool = 9, kFloat16 = 10, kUInt4 = 21 };
enum AttributeType : int { kInt = 1, kInts = 2, kFloatAttribute = 3, kFloats = 4, kString = 5 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum DeviceType : int { kCpu = 0 };

struct ApiBase {
  const void* const* (*GetApi)(uint32_t version) noexcept;
  const char* (*GetVersionString)() noexcept;
};

// X(slot, result, name, parameters)
#define OBERT_ORT_FUNCTIONS(X)                                                                              \
  X(0, Status*, CreateStatus, (int code, const char* message))                                              \
  X(2, const char*, GetErrorMessage, (const Status*))                                                       \
  X(51, Status*, GetTensorMutableData, (Value*, void** data))                                               \
  X(55, Status*, CastTypeInfoToTensorInfo, (const TypeInfo*, const TensorInfo**))                           \
  X(60, Status*, GetTensorElementType, (const TensorInfo*, int* type))                                      \
  X(61, Status*, GetDimensionsCount, (const TensorInfo*, size_t* count))                                    \
  X(62, Status*, GetDimensions, (const TensorInfo*, int64_t* dimensions, size_t count))                     \
  X(64, Status*, GetTensorShapeElementCount, (const TensorInfo*, size_t* count))                            \
  X(65, Status*, GetTensorTypeAndShape, (const Value*, TensorInfo**))                                       \
  X(90, Status*, KernelContext_GetInput, (const KernelContext*, size_t index, const Value**))               \
  X(91, Status*, KernelContext_GetOutput,                                                                   \
    (KernelContext*, size_t index, const int64_t* dimensions, size_t count, Value**))                       \
  X(93, void, ReleaseStatus, (Status*))                                                                     \
  X(96, void, ReleaseValue, (Value*))                                                                       \
  X(99, void, ReleaseTensorTypeAndShapeInfo, (TensorInfo*))                                                 \
  X(237, Status*, HasSessionConfigEntry, (const SessionOptions*, const char* key, int* found))              \
  X(238, Status*, GetSessionConfigEntry, (const SessionOptions*, const char* key, char* value, size_t*))    \
  X(272, Status*, ReadOpAttr, (const OpAttribute*, int type, void* data, size_t size, size_t* written))     \
  X(274, Status*, KernelContext_ParallelFor,                                                                \
    (const KernelContext*, void (*task)(void*, size_t), size_t total, size_t batches, void* argument))      \
  X(289, Status*, GetValueInfoName, (const ValueInfo*, const char**))                                       \
  X(290, Status*, GetValueInfoTypeInfo, (const ValueInfo*, const TypeInfo**))                               \
  X(307, int, HardwareDevice_Type, (const HardwareDevice*))                                                 \
  X(317, const struct EpFunctions*, GetEpApi, ())                                                           \
  X(326, Status*, ValueInfo_GetInitializerValue, (const ValueInfo*, const Value**))                         \
  X(330, Status*, ValueInfo_IsGraphOutput, (const ValueInfo*, bool*))                                       \
  X(331, Status*, ValueInfo_IsConstantInitializer, (const ValueInfo*, bool*))                               \
  X(344, Status*, Graph_GetNumNodes, (const Graph*, size_t*))                                               \
  X(345, Status*, Graph_GetNodes, (const Graph*, const Node** nodes, size_t count))                         \
  X(350, Status*, Node_GetOperatorType, (const Node*, const char**))                                        \
  X(351, Status*, Node_GetDomain, (const Node*, const char**))                                              \
  X(352, Status*, Node_GetSinceVersion, (const Node*, int* version))                                        \
  X(353, Status*, Node_GetNumInputs, (const Node*, size_t*))                                                \
  X(354, Status*, Node_GetInputs, (const Node*, const ValueInfo** values, size_t count))                    \
  X(355, Status*, Node_GetNumOutputs, (const Node*, size_t*))                                               \
  X(356, Status*, Node_GetOutputs, (const Node*, const ValueInfo** values, size_t count))                   \
  X(361, Status*, Node_GetAttributeByName, (const Node*, const char* name, const OpAttribute**))            \
  X(362, Status*, OpAttr_GetTensorAttributeAsOrtValue, (const OpAttribute*, Value**))

struct NodeFusionOptions {
  uint32_t version;
  bool drop_constant_initializers;
};

// The first functions of the table that GetEpApi returns.
struct EpFunctions {
  Status* (*CreateEpDevice)(struct EpFactory*, const HardwareDevice*, const KeyValues* metadata,
                            const KeyValues* options, EpDevice**) noexcept;
  void (*ReleaseEpDevice)(EpDevice*) noexcept;
  Status* (*AddNodesToFuse)(GraphSupport*, const Node* const* nodes, size_t count, const NodeFusionOptions*) noexcept;
};

struct NodeComputeInfo {
  uint32_t version;
  Status* (*CreateState)(NodeComputeInfo*, NodeComputeContext*, void** state) noexcept;
  Status* (*Compute)(NodeComputeInfo*, void* state, KernelContext*) noexcept;
  void (*ReleaseState)(NodeComputeInfo*, void* state) noexcept;
};

// Fields as of API 23; later ones are optional and are not read when `version` says 23.
struct Ep {
  uint32_t version;
  const char* (*GetName)(const Ep*) noexcept;
  Status* (*GetCapability)(Ep*, const Graph*, GraphSupport*) noexcept;
  Status* (*Compile)(Ep*, const Graph** graphs, const Node** fused, size_t count, NodeComputeInfo** infos,
                     Node** context_nodes) noexcept;
  void (*ReleaseNodeComputeInfos)(Ep*, NodeComputeInfo** infos, size_t count) noexcept;
  void* optional[8];
};

struct EpFactory {
  uint32_t version;
  const char* (*GetName)(const EpFactory*) noexcept;
  const char* (*GetVendor)(const EpFactory*) noexcept;
  Status* (*GetSupportedDevices)(EpFactory*, const HardwareDevice* const* devices, size_t count, EpDevice** found,
                                 size_t room, size_t* found_count) noexcept;
  Status* (*CreateEp)(EpFactory*, const HardwareDevice* const* devices, const KeyValues* const* metadata,
                      size_t count, const SessionOptions*, const Logger*, Ep**) noexcept;
  void (*ReleaseEp)(EpFactory*, Ep*) noexcept;
  uint32_t (*GetVendorId)(const EpFactory*) noexcept;
  const char* (*GetVersion)(const EpFactory*) noexcept;
  void* ValidateCompiledModelCompatibilityInfo;
  Status* (*CreateAllocator)(EpFactory*, const MemoryInfo*, const KeyValues*, Allocator**) noexcept;
  void (*ReleaseAllocator)(EpFactory*, Allocator*) noexcept;
  Status* (*CreateDataTransfer)(EpFactory*, DataTransfer**) noexcept;
  bool (*IsStreamAware)(const EpFactory*) noexcept;
  void* CreateSyncStreamForDevice;
};

struct Api {
#define X(slot, result, name, parameters) result(*name) parameters noexcept = nullptr;
  OBERT_ORT_FUNCTIONS(X)
#undef X

  // False when the runtime is older than kOldestApi.
  bool load(const ApiBase* base) noexcept {
    const void* const* table = base->GetApi(kOldestApi);
    if (table == nullptr) return false;
#define X(slot, result, name, parameters) name = reinterpret_cast<result(*) parameters noexcept>(const_cast<void*>(table[slot]));
    OBERT_ORT_FUNCTIONS(X)
#undef X
    return true;
  }
};

}  // namespace obert::ort
