// Our declarations of the driver's interface against its own header: compiled, never run, by native/cuda/build.mjs --check
// where cuda.h is there (12.8 or later). Sizes and places of fields, values, and that each function has a signature of the
// CUDA version that we ask for.
#include <cuda.h>
#include <cudaTypedefs.h>

#include <cstddef>
#include <type_traits>

#include "../../../transport/cuda_api.h"

namespace ours = millrace::kv::cuda;

#define SAME_SIZE(own, theirs) static_assert(sizeof(own) == sizeof(theirs) && alignof(own) == alignof(theirs))
SAME_SIZE(ours::Result, CUresult);
SAME_SIZE(ours::DeviceAddress, CUdeviceptr);
SAME_SIZE(ours::Device, CUdevice);
SAME_SIZE(ours::Allocation, CUmemGenericAllocationHandle);
SAME_SIZE(ours::Uuid, CUuuid);
SAME_SIZE(ours::IpcHandle, CUipcMemHandle);
SAME_SIZE(ours::FabricHandle, CUmemFabricHandle);
SAME_SIZE(ours::Location, CUmemLocation);
SAME_SIZE(ours::AllocationProperties, CUmemAllocationProp);
SAME_SIZE(ours::AccessDescription, CUmemAccessDesc);
SAME_SIZE(ours::CopyAttributes, CUmemcpyAttributes);
static_assert(sizeof(CUcontext) == sizeof(ours::Context) && sizeof(CUstream) == sizeof(ours::Stream));

#define SAME_PLACE(own, field, theirs, their_field) static_assert(offsetof(own, field) == offsetof(theirs, their_field))
SAME_PLACE(ours::Location, id, CUmemLocation, id);
SAME_PLACE(ours::AllocationProperties, requested_handle_types, CUmemAllocationProp, requestedHandleTypes);
SAME_PLACE(ours::AllocationProperties, location, CUmemAllocationProp, location);
SAME_PLACE(ours::AllocationProperties, win32, CUmemAllocationProp, win32HandleMetaData);
SAME_PLACE(ours::AllocationProperties, flags, CUmemAllocationProp, allocFlags);
SAME_PLACE(ours::AccessDescription, flags, CUmemAccessDesc, flags);
SAME_PLACE(ours::CopyAttributes, source_hint, CUmemcpyAttributes, srcLocHint);
SAME_PLACE(ours::CopyAttributes, target_hint, CUmemcpyAttributes, dstLocHint);
SAME_PLACE(ours::CopyAttributes, flags, CUmemcpyAttributes, flags);

#define SAME_VALUE(own, theirs) static_assert(static_cast<long long>(own) == static_cast<long long>(theirs))
SAME_VALUE(ours::kSuccess, CUDA_SUCCESS);
SAME_VALUE(ours::kNotReady, CUDA_ERROR_NOT_READY);
SAME_VALUE(ours::kPeerAccessAlreadyEnabled, CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
SAME_VALUE(ours::kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
SAME_VALUE(ours::kMultiprocessorCount, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_VALUE(ours::kUnifiedAddressing, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING);
SAME_VALUE(ours::kComputeCapabilityMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_VALUE(ours::kComputeCapabilityMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_VALUE(ours::kVirtualMemoryManagement, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME_VALUE(ours::kHandleTypePosixFd, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
SAME_VALUE(ours::kCanUse64BitStreamMemOps, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS);
SAME_VALUE(ours::kPointerMemoryType, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME_VALUE(ours::kPointerBufferId, CU_POINTER_ATTRIBUTE_BUFFER_ID);
SAME_VALUE(ours::kPointerDeviceOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME_VALUE(ours::kPointerIsLegacyIpcCapable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
SAME_VALUE(ours::kPointerAllowedHandleTypes, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES);
SAME_VALUE(ours::kPointerMappingBytes, CU_POINTER_ATTRIBUTE_MAPPING_SIZE);
SAME_VALUE(ours::kPointerMappingBase, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR);
SAME_VALUE(ours::kMemoryTypeDevice, CU_MEMORYTYPE_DEVICE);
SAME_VALUE(ours::kCaptureRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME_VALUE(ours::kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
SAME_VALUE(ours::kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
SAME_VALUE(ours::kHostAllocPortable, CU_MEMHOSTALLOC_PORTABLE);
SAME_VALUE(ours::kHostAllocDeviceMap, CU_MEMHOSTALLOC_DEVICEMAP);
SAME_VALUE(ours::kHostRegisterPortable, CU_MEMHOSTREGISTER_PORTABLE);
SAME_VALUE(ours::kHostRegisterDeviceMap, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME_VALUE(ours::kIpcLazyEnablePeerAccess, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
SAME_VALUE(ours::kStreamWriteValueDefault, CU_STREAM_WRITE_VALUE_DEFAULT);
SAME_VALUE(ours::kHandlePosixFd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME_VALUE(ours::kHandleFabric, CU_MEM_HANDLE_TYPE_FABRIC);
SAME_VALUE(ours::kAllocationPinned, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME_VALUE(ours::kLocationDevice, CU_MEM_LOCATION_TYPE_DEVICE);
SAME_VALUE(ours::kAccessReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME_VALUE(ours::kGranularityMinimum, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
SAME_VALUE(ours::kSourceOrderAny, CU_MEMCPY_SRC_ACCESS_ORDER_ANY);
SAME_VALUE(ours::kPreferOverlapWithCompute, CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE);

// As many arguments, each as wide and of the same kind: enums are ints here, and handles are pointers of our own.
template <class Own, class Theirs>
constexpr bool kAlike = sizeof(Own) == sizeof(Theirs) && std::is_pointer_v<Own> == std::is_pointer_v<Theirs> &&
                        std::is_class_v<Own> == std::is_class_v<Theirs>;
template <class Own, class Theirs>
struct SameSignature : std::false_type {};
template <class... Own, class... Theirs>
struct SameSignature<ours::Result (*)(Own...), CUresult (*)(Theirs...)>
    : std::bool_constant<sizeof...(Own) == sizeof...(Theirs)> {
  static_assert((kAlike<Own, Theirs> && ...));
};
#define CHECK_FUNCTION(required, name, version, symbol, arguments) \
  static_assert(SameSignature<decltype(ours::Api::name), PFN_##name##_v##version>::value);
MILLRACE_CUDA_FUNCTIONS(CHECK_FUNCTION)
