// The part of libucp that the ucx transport uses, declared here so that the build needs no header of UCX, and found at run
// time in the library of the machine. Parameters are structs with a mask of the fields that are set: a newer library reads
// no more than those, so these declarations hold from UCX 1.13 on. native/test/ucx/layout.cc proves each offset and value
// against the headers of an installed version. A status is one byte, signed: 0 done, 1 in progress, negative an error.
//
// The library is opened once and never closed, as it starts threads of its own. Any thread.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace millrace::kv {

using UcsStatus = int8_t;
inline constexpr UcsStatus kUcsOk = 0;
inline constexpr UcsStatus kUcsBusy = -15;
// Pointers that are statuses are above this many from the end of the address space.
inline constexpr uintptr_t kUcsErrorsMax = 100;

// What a handler of log messages answers: nobody else need see it.
using UcsLogHandler = int (*)(const char* file, unsigned line, const char* function, int level, const void* component,
                              const char* format, va_list words);
inline constexpr int kUcsLogStop = 0;

inline constexpr uint32_t kUcpApiMajor = 1;
inline constexpr uint32_t kUcpApiMinor = 13;

inline constexpr int kUcsPrintConfig = 1 << 0;

struct UcpParams {
  uint64_t field_mask;
  uint64_t features;
  size_t request_size;
  void* request_init;
  void* request_cleanup;
  uint64_t tag_sender_mask;
  int32_t mt_workers_shared;
  size_t estimated_num_eps;
};
inline constexpr uint64_t kUcpParamFeatures = 1 << 0;
inline constexpr uint64_t kUcpParamMtWorkersShared = 1 << 5;
inline constexpr uint64_t kUcpFeatureRma = 1 << 1;
inline constexpr uint64_t kUcpFeatureWakeup = 1 << 4;
inline constexpr uint64_t kUcpFeatureAm = 1 << 6;

struct UcpWorkerParams {
  uint64_t field_mask;
  int32_t thread_mode;
};
inline constexpr uint64_t kUcpWorkerThreadMode = 1 << 0;
inline constexpr int32_t kUcsThreadSerialized = 1;

using UcpErrorCallback = void (*)(void* argument, void* endpoint, UcsStatus status);
struct UcpEndpointParams {
  uint64_t field_mask;
  const void* address;
  int32_t error_mode;
  UcpErrorCallback error_callback;
  void* error_argument;
};
inline constexpr uint64_t kUcpEndpointAddress = 1 << 0;
inline constexpr uint64_t kUcpEndpointErrorMode = 1 << 1;
inline constexpr uint64_t kUcpEndpointErrorHandler = 1 << 2;
inline constexpr int32_t kUcpErrorModeNone = 0;
inline constexpr int32_t kUcpErrorModePeer = 1;
inline constexpr uint32_t kUcpCloseForce = 1 << 0;

struct UcpMemoryParams {
  uint64_t field_mask;
  void* address;
  size_t length;
  uint32_t flags;
};
inline constexpr uint64_t kUcpMemoryAddress = 1 << 0;
inline constexpr uint64_t kUcpMemoryLength = 1 << 1;
inline constexpr uint64_t kUcpMemoryFlags = 1 << 2;
inline constexpr uint32_t kUcpMemoryAllocate = 1 << 1;

struct UcpMemoryAttributes {
  uint64_t field_mask;
  void* address;
  size_t length;
};

using UcpSendCallback = void (*)(void* request, UcsStatus status, void* user_data);
struct UcpRequestParams {
  uint32_t attributes;
  uint32_t flags;
  void* request;
  UcpSendCallback callback;
  uint64_t datatype;
  void* user_data;
  void* reply_buffer;
  int32_t memory_type;
  void* receive_info;
  void* memory;
};
inline constexpr uint32_t kUcpOpCallback = 1 << 1;
inline constexpr uint32_t kUcpOpUserData = 1 << 2;
inline constexpr uint32_t kUcpOpFlags = 1 << 4;
inline constexpr uint32_t kUcpOpMemory = 1 << 8;
inline constexpr uint32_t kUcpOpMultiSend = 1 << 19;
inline constexpr uint32_t kUcpAmEager = 1 << 1;

struct UcpAmReceived {
  uint64_t attributes;
  void* reply_endpoint;
};
// The data were not sent yet, only announced.
inline constexpr uint64_t kUcpAmRendezvous = 1 << 17;
using UcpAmCallback = UcsStatus (*)(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                    const UcpAmReceived* received);
struct UcpAmHandler {
  uint64_t field_mask;
  uint32_t id;
  uint32_t flags;
  UcpAmCallback callback;
  void* argument;
};
inline constexpr uint64_t kUcpAmHandlerId = 1 << 0;
inline constexpr uint64_t kUcpAmHandlerCallback = 1 << 2;
inline constexpr uint64_t kUcpAmHandlerArgument = 1 << 3;

struct UcxApi {
  // Null, with the reason, where there is no library that can be used. The same for the life of the process.
  static const UcxApi* get(std::string* reason);

  uint32_t version[3];

  void (*get_version)(unsigned* major, unsigned* minor, unsigned* release);
  UcsStatus (*config_read)(const char* prefix, const char* file, void** config);
  UcsStatus (*config_modify)(void* config, const char* name, const char* value);
  void (*config_print)(const void* config, FILE* stream, const char* title, int flags);
  void (*config_release)(void* config);
  UcsStatus (*init)(unsigned major, unsigned minor, const UcpParams* params, const void* config, void** context);
  void (*context_print)(const void* context, FILE* stream);
  UcsStatus (*worker_create)(void* context, const UcpWorkerParams* params, void** worker);
  void (*worker_destroy)(void* worker);
  UcsStatus (*worker_get_address)(void* worker, void** address, size_t* bytes);
  void (*worker_release_address)(void* worker, void* address);
  UcsStatus (*worker_get_efd)(void* worker, int* descriptor);
  UcsStatus (*worker_arm)(void* worker);
  unsigned (*worker_progress)(void* worker);
  UcsStatus (*worker_set_am_handler)(void* worker, const UcpAmHandler* handler);
  UcsStatus (*endpoint_create)(void* worker, const UcpEndpointParams* params, void** endpoint);
  void* (*endpoint_close)(void* endpoint, const UcpRequestParams* params);
  void* (*endpoint_flush)(void* endpoint, const UcpRequestParams* params);
  void (*endpoint_print)(void* endpoint, FILE* stream);
  UcsStatus (*memory_map)(void* context, const UcpMemoryParams* params, void** memory);
  UcsStatus (*memory_unmap)(void* context, void* memory);
  UcsStatus (*memory_query)(void* memory, UcpMemoryAttributes* attributes);
  UcsStatus (*rkey_pack)(void* context, void* memory, void** buffer, size_t* bytes);
  void (*rkey_buffer_release)(void* buffer);
  UcsStatus (*rkey_unpack)(void* endpoint, const void* buffer, void** rkey);
  UcsStatus (*rkey_pointer)(void* rkey, uint64_t remote, void** local);
  void (*rkey_destroy)(void* rkey);
  void* (*put)(void* endpoint, const void* from, size_t bytes, uint64_t to, void* rkey, const UcpRequestParams* params);
  void* (*get_bytes)(void* endpoint, void* to, size_t bytes, uint64_t from, void* rkey, const UcpRequestParams* params);
  void* (*am_send)(void* endpoint, unsigned id, const void* header, size_t header_bytes, const void* data, size_t bytes,
                   const UcpRequestParams* params);
  void (*request_free)(void* request);
  const char* (*status_string)(UcsStatus status);

  bool is_error(const void* pointer) const { return reinterpret_cast<uintptr_t>(pointer) >= UINTPTR_MAX - kUcsErrorsMax + 1; }
  UcsStatus error_of(const void* pointer) const { return static_cast<UcsStatus>(reinterpret_cast<intptr_t>(pointer)); }
};

// Whether the kernel knows a device of the kind that moves bytes between hosts on its own.
bool has_rdma_device();

}  // namespace millrace::kv
