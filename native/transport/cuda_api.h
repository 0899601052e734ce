// What the cuda transport uses of NVIDIA's driver interface, in declarations of our own: nothing of a CUDA toolkit is needed
// to build. Names of functions are the driver's; types and values are those of cuda.h 12.8, which
// native/test/cuda/header_check.cc compares where that header is there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kv::cuda {

using Result = int;
using DeviceAddress = unsigned long long;
using Device = int;
using Context = struct ContextOfDriver*;
using Stream = struct StreamOfDriver*;
using Event = struct EventOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Allocation = unsigned long long;

inline constexpr Result kSuccess = 0;
inline constexpr Result kNotReady = 600;
inline constexpr Result kPeerAccessAlreadyEnabled = 704;
inline constexpr Result kNotSupported = 801;

inline constexpr int kMultiprocessorCount = 16;
inline constexpr int kUnifiedAddressing = 41;
inline constexpr int kComputeCapabilityMajor = 75;
inline constexpr int kComputeCapabilityMinor = 76;
inline constexpr int kVirtualMemoryManagement = 102;
inline constexpr int kHandleTypePosixFd = 103;
inline constexpr int kCanUse64BitStreamMemOps = 122;

inline constexpr int kPointerMemoryType = 2;
inline constexpr int kPointerBufferId = 7;
inline constexpr int kPointerDeviceOrdinal = 9;
inline constexpr int kPointerIsLegacyIpcCapable = 10;
inline constexpr int kPointerAllowedHandleTypes = 14;
inline constexpr int kPointerMappingBytes = 18;
inline constexpr int kPointerMappingBase = 19;
inline constexpr unsigned kMemoryTypeDevice = 2;

inline constexpr int kCaptureRelaxed = 2;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kHostAllocPortable = 1;
inline constexpr unsigned kHostAllocDeviceMap = 2;
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostRegisterDeviceMap = 2;
inline constexpr unsigned kIpcLazyEnablePeerAccess = 1;
inline constexpr unsigned kStreamWriteValueDefault = 0;

inline constexpr int kHandlePosixFd = 1;
inline constexpr int kHandleFabric = 8;
inline constexpr int kAllocationPinned = 1;
inline constexpr int kLocationDevice = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;
inline constexpr int kSourceOrderAny = 3;
inline constexpr unsigned kPreferOverlapWithCompute = 1;

struct Uuid {
  char bytes[16];
};
struct IpcHandle {
  char bytes[64];
};
struct FabricHandle {
  unsigned char bytes[64];
};
struct Location {
  int type;
  int id;
};
struct AllocationProperties {
  int type;
  int requested_handle_types;
  Location location;
  void* win32;
  struct {
    unsigned char compression;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};
struct AccessDescription {
  Location location;
  int flags;
};
struct CopyAttributes {
  int source_access_order;
  Location source_hint;
  Location target_hint;
  unsigned flags;
};

// The functions, by name: MILLRACE_CUDA(required, name, CUDA version whose signature is meant, name for dlsym, arguments).
// Those that are not required came with later drivers, and are null in earlier ones.
#define MILLRACE_CUDA_FUNCTIONS(MILLRACE_CUDA)                                                                            \
  MILLRACE_CUDA(true, cuInit, 2000, "cuInit", (unsigned flags))                                                           \
  MILLRACE_CUDA(true, cuDriverGetVersion, 2020, "cuDriverGetVersion", (int* version))                                     \
  MILLRACE_CUDA(true, cuGetErrorName, 6000, "cuGetErrorName", (Result error, const char** name))                          \
  MILLRACE_CUDA(true, cuDeviceGetCount, 2000, "cuDeviceGetCount", (int* count))                                           \
  MILLRACE_CUDA(true, cuDeviceGet, 2000, "cuDeviceGet", (Device* device, int ordinal))                                    \
  MILLRACE_CUDA(true, cuDeviceGetName, 2000, "cuDeviceGetName", (char* name, int bytes, Device device))                   \
  MILLRACE_CUDA(true, cuDeviceGetAttribute, 2000, "cuDeviceGetAttribute", (int* value, int attribute, Device device))     \
  MILLRACE_CUDA(true, cuDeviceGetUuid, 11040, "cuDeviceGetUuid_v2", (Uuid* uuid, Device device))                          \
  MILLRACE_CUDA(true, cuDeviceCanAccessPeer, 4000, "cuDeviceCanAccessPeer", (int* can, Device device, Device peer))       \
  MILLRACE_CUDA(true, cuDevicePrimaryCtxRetain, 7000, "cuDevicePrimaryCtxRetain", (Context* context, Device device))      \
  MILLRACE_CUDA(true, cuDevicePrimaryCtxRelease, 11000, "cuDevicePrimaryCtxRelease_v2", (Device device))                  \
  MILLRACE_CUDA(true, cuCtxPushCurrent, 4000, "cuCtxPushCurrent_v2", (Context context))                                   \
  MILLRACE_CUDA(true, cuCtxPopCurrent, 4000, "cuCtxPopCurrent_v2", (Context* context))                                    \
  MILLRACE_CUDA(true, cuThreadExchangeStreamCaptureMode, 10010, "cuThreadExchangeStreamCaptureMode", (int* mode))         \
  MILLRACE_CUDA(true, cuCtxEnablePeerAccess, 4000, "cuCtxEnablePeerAccess", (Context peer, unsigned flags))               \
  MILLRACE_CUDA(true, cuMemAlloc, 3020, "cuMemAlloc_v2", (DeviceAddress* address, size_t bytes))                          \
  MILLRACE_CUDA(true, cuMemFree, 3020, "cuMemFree_v2", (DeviceAddress address))                                           \
  MILLRACE_CUDA(true, cuMemsetD8, 3020, "cuMemsetD8_v2", (DeviceAddress address, unsigned char value, size_t bytes))      \
  MILLRACE_CUDA(true, cuMemHostAlloc, 2020, "cuMemHostAlloc", (void** address, size_t bytes, unsigned flags))             \
  MILLRACE_CUDA(true, cuMemFreeHost, 2000, "cuMemFreeHost", (void* address))                                              \
  MILLRACE_CUDA(true, cuMemHostRegister, 6050, "cuMemHostRegister_v2", (void* address, size_t bytes, unsigned flags))     \
  MILLRACE_CUDA(true, cuMemHostUnregister, 4000, "cuMemHostUnregister", (void* address))                                  \
  MILLRACE_CUDA(true, cuMemHostGetDevicePointer, 3020, "cuMemHostGetDevicePointer_v2",                                    \
                (DeviceAddress* out, void* address, unsigned flags))                                                      \
  MILLRACE_CUDA(true, cuPointerGetAttribute, 4000, "cuPointerGetAttribute",                                               \
                (void* value, int attribute, DeviceAddress address))                                                      \
  MILLRACE_CUDA(true, cuMemGetAddressRange, 3020, "cuMemGetAddressRange_v2",                                              \
                (DeviceAddress* base, size_t* bytes, DeviceAddress address))                                              \
  MILLRACE_CUDA(true, cuMemcpyAsync, 4000, "cuMemcpyAsync",                                                               \
                (DeviceAddress target, DeviceAddress source, size_t bytes, Stream stream))                                \
  MILLRACE_CUDA(false, cuMemcpyBatchAsync, 12080, "cuMemcpyBatchAsync",                                                   \
                (DeviceAddress* targets, DeviceAddress* sources, size_t* bytes, size_t count, CopyAttributes* attributes, \
                 size_t* attribute_begins, size_t attribute_count, size_t* failed, Stream stream))                        \
  MILLRACE_CUDA(true, cuStreamCreateWithPriority, 5050, "cuStreamCreateWithPriority",                                     \
                (Stream* stream, unsigned flags, int priority))                                                           \
  MILLRACE_CUDA(true, cuStreamDestroy, 4000, "cuStreamDestroy_v2", (Stream stream))                                       \
  MILLRACE_CUDA(true, cuStreamQuery, 2000, "cuStreamQuery", (Stream stream))                                              \
  MILLRACE_CUDA(true, cuStreamSynchronize, 2000, "cuStreamSynchronize", (Stream stream))                                  \
  MILLRACE_CUDA(false, cuStreamWriteValue64, 11070, "cuStreamWriteValue64_v2",                                            \
                (Stream stream, DeviceAddress address, uint64_t value, unsigned flags))                                   \
  MILLRACE_CUDA(true, cuCtxGetStreamPriorityRange, 5050, "cuCtxGetStreamPriorityRange", (int* least, int* greatest))      \
  MILLRACE_CUDA(true, cuEventCreate, 2000, "cuEventCreate", (Event* event, unsigned flags))                               \
  MILLRACE_CUDA(true, cuEventDestroy, 4000, "cuEventDestroy_v2", (Event event))                                           \
  MILLRACE_CUDA(true, cuEventRecord, 2000, "cuEventRecord", (Event event, Stream stream))                                 \
  MILLRACE_CUDA(true, cuEventQuery, 2000, "cuEventQuery", (Event event))                                                  \
  MILLRACE_CUDA(true, cuModuleLoadData, 2000, "cuModuleLoadData", (Module* module, const void* image))                    \
  MILLRACE_CUDA(true, cuModuleUnload, 2000, "cuModuleUnload", (Module module))                                            \
  MILLRACE_CUDA(true, cuModuleGetFunction, 2000, "cuModuleGetFunction",                                                   \
                (Function* function, Module module, const char* name))                                                    \
  MILLRACE_CUDA(true, cuLaunchKernel, 4000, "cuLaunchKernel",                                                             \
                (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,                  \
                 unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** arguments,              \
                 void** extra))                                                                                           \
  MILLRACE_CUDA(true, cuIpcGetMemHandle, 4010, "cuIpcGetMemHandle", (IpcHandle* handle, DeviceAddress address))           \
  MILLRACE_CUDA(true, cuIpcOpenMemHandle, 11000, "cuIpcOpenMemHandle_v2",                                                 \
                (DeviceAddress* address, IpcHandle handle, unsigned flags))                                               \
  MILLRACE_CUDA(true, cuIpcCloseMemHandle, 4010, "cuIpcCloseMemHandle", (DeviceAddress address))                          \
  MILLRACE_CUDA(false, cuMemCreate, 10020, "cuMemCreate",                                                                 \
                (Allocation* handle, size_t bytes, const AllocationProperties* properties, unsigned long long flags))     \
  MILLRACE_CUDA(false, cuMemRelease, 10020, "cuMemRelease", (Allocation handle))                                          \
  MILLRACE_CUDA(false, cuMemAddressReserve, 10020, "cuMemAddressReserve",                                                 \
                (DeviceAddress* address, size_t bytes, size_t alignment, DeviceAddress wanted, unsigned long long flags)) \
  MILLRACE_CUDA(false, cuMemAddressFree, 10020, "cuMemAddressFree", (DeviceAddress address, size_t bytes))                \
  MILLRACE_CUDA(false, cuMemMap, 10020, "cuMemMap",                                                                       \
                (DeviceAddress address, size_t bytes, size_t offset, Allocation handle, unsigned long long flags))        \
  MILLRACE_CUDA(false, cuMemUnmap, 10020, "cuMemUnmap", (DeviceAddress address, size_t bytes))                            \
  MILLRACE_CUDA(false, cuMemSetAccess, 10020, "cuMemSetAccess",                                                           \
                (DeviceAddress address, size_t bytes, const AccessDescription* access, size_t count))                     \
  MILLRACE_CUDA(false, cuMemGetAllocationGranularity, 10020, "cuMemGetAllocationGranularity",                             \
                (size_t* bytes, const AllocationProperties* properties, int option))                                      \
  MILLRACE_CUDA(false, cuMemExportToShareableHandle, 10020, "cuMemExportToShareableHandle",                               \
                (void* out, Allocation handle, int type, unsigned long long flags))                                       \
  MILLRACE_CUDA(false, cuMemImportFromShareableHandle, 10020, "cuMemImportFromShareableHandle",                           \
                (Allocation* handle, void* from, int type))                                                               \
  MILLRACE_CUDA(false, cuMemRetainAllocationHandle, 11000, "cuMemRetainAllocationHandle",                                 \
                (Allocation* handle, void* address))

struct Api {
#define MILLRACE_CUDA_MEMBER(required, name, version, symbol, arguments) Result(*name) arguments = nullptr;
  MILLRACE_CUDA_FUNCTIONS(MILLRACE_CUDA_MEMBER)
#undef MILLRACE_CUDA_MEMBER
};

}  // namespace millrace::kv::cuda
