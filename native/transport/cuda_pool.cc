// Allocates device memory, or looks at what a caller has allocated. See cuda_pool.h.
#include "cuda_pool.h"

#include "cuda_memory.h"

namespace millrace::kv {
namespace {

using cuda::Api;
using cuda::DeviceAddress;
using cuda::PrimaryContext;
using cuda::Result;

// Gives back what was allocated when the last pool or peer lets go of it.
struct DeviceMemory {
  std::shared_ptr<PrimaryContext> holder;
  DeviceAddress address = 0;
  // 0: by cuMemAlloc.
  uint64_t mapped_bytes = 0;
  bool is_mapped = false;

  ~DeviceMemory() {
    if (address == 0) return;
    const Api& api = holder->api();
    const cuda::Current current(api, holder->context());
    if (mapped_bytes == 0) {
      api.cuMemFree(address);
      return;
    }
    if (is_mapped) api.cuMemUnmap(address, mapped_bytes);
    api.cuMemAddressFree(address, mapped_bytes);
  }
};

Status hold(int32_t device, std::shared_ptr<PrimaryContext>* out, std::string* error) {
  const Api* const api = cuda::library(error);
  if (api == nullptr) return Status::kUnsupported;
  return PrimaryContext::hold(*api, device, out, error);
}

int attribute(const Api& api, int32_t device, int which) {
  cuda::Device number = 0;
  int value = 0;
  if (api.cuDeviceGet(&number, device) != cuda::kSuccess) return 0;
  return api.cuDeviceGetAttribute(&value, which, number) == cuda::kSuccess ? value : 0;
}

// Physical memory that may be exported as a descriptor, and a mapping of it.
Result map_exportable(DeviceMemory* memory, int32_t device, uint64_t bytes) {
  const Api& api = memory->holder->api();
  cuda::AllocationProperties properties{};
  properties.type = cuda::kAllocationPinned;
  properties.requested_handle_types = cuda::kHandlePosixFd;
  properties.location = {cuda::kLocationDevice, device};
  size_t unit = 0;
  Result result = api.cuMemGetAllocationGranularity(&unit, &properties, cuda::kGranularityMinimum);
  if (result != cuda::kSuccess) return result;
  const uint64_t mapped = (bytes + unit - 1) / unit * unit;
  cuda::Allocation allocation = 0;
  result = api.cuMemCreate(&allocation, mapped, &properties, 0);
  if (result != cuda::kSuccess) return result;
  result = api.cuMemAddressReserve(&memory->address, mapped, 0, 0, 0);
  if (result == cuda::kSuccess) {
    memory->mapped_bytes = mapped;
    result = api.cuMemMap(memory->address, mapped, 0, allocation, 0);
    memory->is_mapped = result == cuda::kSuccess;
  }
  // The mapping keeps it.
  api.cuMemRelease(allocation);
  return result == cuda::kSuccess ? cuda::allow_access(*memory->holder, memory->address, mapped) : result;
}

}  // namespace

Status create_device_pool(int32_t device, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error) {
  if (bytes < 1 || bytes > kPoolBytesMax) {
    *error = "bytes must be from 1 to " + std::to_string(kPoolBytesMax) + "; got " + std::to_string(bytes);
    return Status::kInvalid;
  }
  auto memory = std::make_shared<DeviceMemory>();
  const Status status = hold(device, &memory->holder, error);
  if (status != Status::kOk) return status;
  const Api& api = memory->holder->api();
  const cuda::Current current(api, memory->holder->context());
  const bool can_export = api.cuMemCreate != nullptr && attribute(api, device, cuda::kVirtualMemoryManagement) != 0 &&
                          attribute(api, device, cuda::kHandleTypePosixFd) != 0;
  Result result = can_export ? map_exportable(memory.get(), device, bytes) : api.cuMemAlloc(&memory->address, bytes);
  if (result == cuda::kSuccess) result = api.cuMemsetD8(memory->address, 0, bytes);
  // It only begins then, in the default stream, for which the streams of transfers do not wait.
  if (result == cuda::kSuccess) result = api.cuStreamSynchronize(nullptr);
  if (result != cuda::kSuccess) {
    *error = "memory for a pool of " + std::to_string(bytes) + " bytes on device " + std::to_string(device) + ": " +
             cuda::error_words(api, can_export ? "cuMemCreate" : "cuMemAlloc", result);
    return Status::kSystem;
  }
  return Pool::wrap_device(device, memory->address, bytes, memory, out, error);
}

Status register_device_pool(int32_t device, uint64_t address, uint64_t bytes, std::unique_ptr<Pool>* out,
                            std::string* error) {
  std::shared_ptr<PrimaryContext> holder;
  Status status = hold(device, &holder, error);
  std::unique_ptr<Pool> pool;
  if (status == Status::kOk) status = Pool::wrap_device(device, address, bytes, holder, &pool, error);
  if (status != Status::kOk) return status;
  const Api& api = holder->api();
  const cuda::Current current(api, holder->context());
  for (const uint64_t at : {address, address + bytes - 1}) {
    unsigned type = 0;
    int ordinal = -1;
    const bool is_known = api.cuPointerGetAttribute(&type, cuda::kPointerMemoryType, at) == cuda::kSuccess &&
                          api.cuPointerGetAttribute(&ordinal, cuda::kPointerDeviceOrdinal, at) == cuda::kSuccess;
    if (is_known && type == cuda::kMemoryTypeDevice && ordinal == device) continue;
    *error = "address must be memory of device " + std::to_string(device) + "; " + std::to_string(at) +
             (is_known && type == cuda::kMemoryTypeDevice ? " is of device " + std::to_string(ordinal) : " is not of a device");
    return Status::kInvalid;
  }
  *out = std::move(pool);
  return Status::kOk;
}

}  // namespace millrace::kv
