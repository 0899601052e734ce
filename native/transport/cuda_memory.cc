// Contexts, imports and registrations. See cuda_memory.h.
#include "cuda_memory.h"

#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

namespace millrace::kv::cuda {
namespace {

// What this process has opened or registered, and how many use it. The lock is held while the driver is called, so that
// nothing is let go by one thread while another takes it up.
struct Shared {
  uint32_t users = 0;
  DeviceAddress address = 0;
  // False where others in the process registered it before us.
  bool is_ours = true;
};
using ImportKey = std::tuple<int, std::array<uint8_t, 64>, uint64_t>;
using MemoryKey = std::pair<void*, uint64_t>;
struct Known {
  std::mutex lock;
  std::map<ImportKey, Shared> imports;
  std::map<MemoryKey, Shared> registrations;
};

Known& known() {
  static Known* const all = new Known;
  return *all;
}

template <class Value>
Result pointer_attribute(const Api& api, int which, DeviceAddress address, Value* out) {
  return api.cuPointerGetAttribute(out, which, address);
}

struct Range {
  DeviceAddress base = 0;
  uint64_t bytes = 0;
  bool holds(uint64_t address, uint64_t size) const {
    return address >= base && address - base <= bytes && size <= bytes - (address - base);
  }
};

bool tell_ipc(const Api& api, uint64_t address, uint64_t bytes, PoolFacts* facts, std::string* why) {
  unsigned capable = 0;
  if (pointer_attribute(api, kPointerIsLegacyIpcCapable, address, &capable) != kSuccess || capable == 0) {
    *why = "it was not allocated by cuMemAlloc";
    return false;
  }
  Range range;
  size_t size = 0;
  Result result = api.cuMemGetAddressRange(&range.base, &size, address);
  range.bytes = size;
  if (result == kSuccess && !range.holds(address, bytes)) {
    *why = "it is more than one allocation";
    return false;
  }
  IpcHandle handle{};
  if (result == kSuccess) result = api.cuIpcGetMemHandle(&handle, range.base);
  if (result != kSuccess) {
    *why = error_words(api, "cuIpcGetMemHandle", result);
    return false;
  }
  facts->way = Way::kIpc;
  facts->allocation_bytes = range.bytes;
  facts->offset = address - range.base;
  std::memcpy(facts->handle.data(), handle.bytes, facts->handle.size());
  return true;
}

// The mapping that holds the pool, whole: torch's expandable segments are many, side by side.
bool find_mapping(const Api& api, uint64_t address, uint64_t bytes, Range* out, std::string* why) {
  size_t size = 0;
  Result result = pointer_attribute(api, kPointerMappingBase, address, &out->base);
  if (result == kSuccess) result = pointer_attribute(api, kPointerMappingBytes, address, &size);
  // Earlier drivers have no such attributes.
  if (result != kSuccess) result = api.cuMemGetAddressRange(&out->base, &size, address);
  out->bytes = size;
  if (result == kSuccess && out->holds(address, bytes)) return true;
  *why = result == kSuccess ? "it is more than one mapping" : error_words(api, "cuMemGetAddressRange", result);
  return false;
}

bool tell_mapping(const Api& api, uint64_t address, uint64_t bytes, PoolFacts* facts, int* descriptor, std::string* why) {
  unsigned long long allowed = 0;
  if (api.cuMemRetainAllocationHandle == nullptr ||
      pointer_attribute(api, kPointerAllowedHandleTypes, address, &allowed) != kSuccess ||
      (allowed & (kHandlePosixFd | kHandleFabric)) == 0) {
    *why += "; who allocated it did not ask for a handle that can be exported";
    return false;
  }
  Range range;
  if (!find_mapping(api, address, bytes, &range, why)) return false;
  Allocation allocation = 0;
  Result result = api.cuMemRetainAllocationHandle(&allocation, reinterpret_cast<void*>(address));
  if (result != kSuccess) {
    *why = error_words(api, "cuMemRetainAllocationHandle", result);
    return false;
  }
  const bool is_fd = (allowed & kHandlePosixFd) != 0;
  FabricHandle fabric{};
  if (is_fd) result = api.cuMemExportToShareableHandle(descriptor, allocation, kHandlePosixFd, 0);
  else result = api.cuMemExportToShareableHandle(&fabric, allocation, kHandleFabric, 0);
  api.cuMemRelease(allocation);
  if (result != kSuccess) {
    *descriptor = -1;
    *why = error_words(api, "cuMemExportToShareableHandle", result);
    return false;
  }
  facts->way = is_fd ? Way::kPosixFd : Way::kFabric;
  facts->allocation_bytes = range.bytes;
  facts->offset = address - range.base;
  if (!is_fd) std::memcpy(facts->handle.data(), fabric.bytes, facts->handle.size());
  return true;
}

}  // namespace

Status PrimaryContext::hold(const Api& api, int ordinal, std::shared_ptr<PrimaryContext>* out, std::string* error) {
  Device device = 0;
  Result result = api.cuDeviceGet(&device, ordinal);
  if (result != kSuccess) {
    *error = "device " + std::to_string(ordinal) + ": " + error_words(api, "cuDeviceGet", result);
    return Status::kNotFound;
  }
  Context context = nullptr;
  result = api.cuDevicePrimaryCtxRetain(&context, device);
  if (result != kSuccess) {
    *error = "device " + std::to_string(ordinal) + ": " + error_words(api, "cuDevicePrimaryCtxRetain", result);
    return Status::kSystem;
  }
  out->reset(new PrimaryContext(api, ordinal));
  (*out)->device_ = device;
  (*out)->context_ = context;
  return Status::kOk;
}

int ordinal_of(const Api& api, const std::array<uint8_t, 16>& uuid) {
  int count = 0;
  if (api.cuDeviceGetCount(&count) != kSuccess) return -1;
  for (int ordinal = 0; ordinal < count; ordinal++) {
    Device device = 0;
    Uuid found{};
    if (api.cuDeviceGet(&device, ordinal) != kSuccess || api.cuDeviceGetUuid(&found, device) != kSuccess) continue;
    if (std::memcmp(found.bytes, uuid.data(), uuid.size()) == 0) return ordinal;
  }
  return -1;
}

void tell_memory(const PrimaryContext& holder, uint64_t address, uint64_t bytes, PoolFacts* facts, int* descriptor,
                 std::string* why) {
  const Api& api = holder.api();
  const Current current(api, holder.context());
  facts->way = Way::kNone;
  *descriptor = -1;
  if (pointer_attribute(api, kPointerBufferId, address, &facts->buffer) != kSuccess) facts->buffer = 0;
  if (!tell_ipc(api, address, bytes, facts, why)) tell_mapping(api, address, bytes, facts, descriptor, why);
}

Status Import::open(const std::shared_ptr<PrimaryContext>& holder, const PoolFacts& facts, int descriptor,
                    std::shared_ptr<Import>* out, std::string* error) {
  const Current current(holder->api(), holder->context());
  std::shared_ptr<Import> made(new Import(holder));
  const Status status = facts.way == Way::kIpc ? made->open_handle(facts, error) : made->map(facts, descriptor, error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

// Pools in one allocation have one handle, which the driver opens once.
Status Import::open_handle(const PoolFacts& facts, std::string* error) {
  handle_ = facts.handle;
  buffer_ = facts.buffer;
  const std::lock_guard guard(known().lock);
  const ImportKey key{holder_->ordinal(), handle_, buffer_};
  Shared& shared = known().imports[key];
  if (shared.users == 0) {
    IpcHandle handle{};
    std::memcpy(handle.bytes, handle_.data(), handle_.size());
    const Result result = holder_->api().cuIpcOpenMemHandle(&shared.address, handle, kIpcLazyEnablePeerAccess);
    if (result != kSuccess) {
      known().imports.erase(key);
      *error = error_words(holder_->api(), "cuIpcOpenMemHandle", result);
      return Status::kUnsupported;
    }
  }
  shared.users++;
  address_ = shared.address;
  is_shared_ = true;
  return Status::kOk;
}

Status Import::map(const PoolFacts& facts, int descriptor, std::string* error) {
  const Api& api = holder_->api();
  if (api.cuMemImportFromShareableHandle == nullptr) {
    *error = "the driver has no cuMemImportFromShareableHandle";
    return Status::kUnsupported;
  }
  Allocation allocation = 0;
  FabricHandle fabric{};
  std::memcpy(fabric.bytes, facts.handle.data(), facts.handle.size());
  const bool is_fd = facts.way == Way::kPosixFd;
  void* const from = is_fd ? reinterpret_cast<void*>(static_cast<uintptr_t>(descriptor)) : &fabric;
  Result result = api.cuMemImportFromShareableHandle(&allocation, from, is_fd ? kHandlePosixFd : kHandleFabric);
  if (result != kSuccess) {
    *error = error_words(api, "cuMemImportFromShareableHandle", result);
    return Status::kUnsupported;
  }
  result = api.cuMemAddressReserve(&address_, facts.allocation_bytes, 0, 0, 0);
  if (result == kSuccess) {
    mapped_bytes_ = facts.allocation_bytes;
    result = api.cuMemMap(address_, mapped_bytes_, 0, allocation, 0);
    is_mapped_ = result == kSuccess;
  }
  api.cuMemRelease(allocation);
  if (result == kSuccess) result = allow_access(*holder_, address_, mapped_bytes_);
  if (result == kSuccess) return Status::kOk;
  *error = error_words(api, "mapping the peer's memory", result);
  return Status::kUnsupported;
}

Import::~Import() {
  if (address_ == 0) return;
  const Api& api = holder_->api();
  const Current current(api, holder_->context());
  if (is_shared_) {
    const std::lock_guard guard(known().lock);
    const auto found = known().imports.find({holder_->ordinal(), handle_, buffer_});
    if (--found->second.users > 0) return;
    api.cuIpcCloseMemHandle(address_);
    known().imports.erase(found);
    return;
  }
  if (is_mapped_) api.cuMemUnmap(address_, mapped_bytes_);
  api.cuMemAddressFree(address_, mapped_bytes_);
}

Status HostRegistration::make(const std::shared_ptr<PrimaryContext>& holder, void* address, uint64_t bytes,
                              std::shared_ptr<HostRegistration>* out, std::string* error) {
  const Api& api = holder->api();
  const Current current(api, holder->context());
  const std::lock_guard guard(known().lock);
  Shared& shared = known().registrations[{address, bytes}];
  if (shared.users == 0) {
    Result result = api.cuMemHostRegister(address, bytes, kHostRegisterPortable | kHostRegisterDeviceMap);
    shared.is_ours = result == kSuccess;
    // Where it is pinned already, by torch's pin_memory for one, it has a device address all the same.
    const Result found = api.cuMemHostGetDevicePointer(&shared.address, address, 0);
    if (shared.is_ours || found == kSuccess) result = found;
    if (result != kSuccess) {
      if (shared.is_ours) api.cuMemHostUnregister(address);
      known().registrations.erase({address, bytes});
      *error = error_words(api, "cuMemHostRegister", result);
      return Status::kSystem;
    }
  }
  shared.users++;
  std::shared_ptr<HostRegistration> made(new HostRegistration(holder, address, bytes));
  made->device_address_ = shared.address;
  *out = std::move(made);
  return Status::kOk;
}

HostRegistration::~HostRegistration() {
  const Current current(holder_->api(), holder_->context());
  const std::lock_guard guard(known().lock);
  const auto found = known().registrations.find({address_, bytes_});
  if (--found->second.users > 0) return;
  if (found->second.is_ours) holder_->api().cuMemHostUnregister(address_);
  known().registrations.erase(found);
}

Result allow_access(const PrimaryContext& holder, DeviceAddress address, uint64_t bytes) {
  const Api& api = holder.api();
  std::vector<AccessDescription> access = {{{kLocationDevice, holder.ordinal()}, kAccessReadWrite}};
  Device own = 0;
  int count = 0;
  Result result = api.cuDeviceGet(&own, holder.ordinal());
  if (result == kSuccess) result = api.cuDeviceGetCount(&count);
  if (result != kSuccess) return result;
  for (int ordinal = 0; ordinal < count; ordinal++) {
    Device other = 0;
    int can = 0;
    if (ordinal == holder.ordinal() || api.cuDeviceGet(&other, ordinal) != kSuccess) continue;
    if (api.cuDeviceCanAccessPeer(&can, other, own) != kSuccess || can == 0) continue;
    access.push_back({{kLocationDevice, ordinal}, kAccessReadWrite});
  }
  return api.cuMemSetAccess(address, bytes, access.data(), access.size());
}

}  // namespace millrace::kv::cuda
