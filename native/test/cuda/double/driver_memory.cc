// Memory of the driver double: allocations, mappings, registrations and handles, and what may be touched when. See
// driver_double.cc.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "double_state.h"

using namespace millrace::kv::cuda;
using namespace millrace::driver_double;

namespace millrace::driver_double {

State& state() {
  static State* const all = new State;
  return *all;
}

std::vector<int>& context_stack() {
  thread_local std::vector<int> stack;
  return stack;
}

Result called(const char* function, bool needs_context) {
  const std::lock_guard guard(state().lock);
  state().calls[function]++;
  if (needs_context && (context_stack().empty() || capture_mode() != millrace::kv::cuda::kCaptureRelaxed)) {
    state().faults++;
    return kNoContext;
  }
  const auto found = state().failing.find(function);
  if (found == state().failing.end()) return kSuccess;
  const int result = found->second;
  state().failing.erase(found);
  return result;
}

const std::pair<const uint64_t, Memory>* find(uint64_t address, uint64_t bytes) {
  auto after = state().memory.upper_bound(address);
  if (after == state().memory.begin()) return nullptr;
  --after;
  const bool holds = address - after->first <= after->second.bytes && bytes <= after->second.bytes - (address - after->first);
  return holds && after->second.is_accessible ? &*after : nullptr;
}

bool may_touch(uint64_t address, uint64_t bytes) {
  const std::lock_guard guard(state().lock);
  if (find(address, bytes) != nullptr) return true;
  state().faults++;
  return false;
}

int& capture_mode() {
  thread_local int mode = 0;
  return mode;
}

}  // namespace millrace::driver_double

namespace {

int make_memory(uint64_t bytes) {
  const int descriptor = memfd_create("device", MFD_CLOEXEC);
  if (descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(bytes)) == 0) return descriptor;
  if (descriptor >= 0) close(descriptor);
  return -1;
}

void* map_memory(int descriptor, uint64_t bytes, void* at = nullptr) {
  void* const made = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | (at == nullptr ? 0 : MAP_FIXED), descriptor, 0);
  return made == MAP_FAILED ? nullptr : made;
}

struct HandleWords {
  int32_t pid;
  int32_t descriptor;
  uint64_t bytes;
  uint64_t inode;
};

}  // namespace

extern "C" {

Result cuMemAlloc_v2(DeviceAddress* address, size_t bytes) {
  CALLED();
  const int descriptor = make_memory(bytes);
  void* const made = descriptor < 0 ? nullptr : map_memory(descriptor, bytes);
  if (made == nullptr) return kOutOfMemory;
  const std::lock_guard guard(state().lock);
  *address = reinterpret_cast<uintptr_t>(made);
  state().memory[*address] = {Kind::kDevice, bytes, context_stack().back(), descriptor, true, false, ++state().made};
  return kSuccess;
}
Result cuMemFree_v2(DeviceAddress address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || found->second.kind != Kind::kDevice) return kInvalidValue;
  munmap(reinterpret_cast<void*>(address), found->second.bytes);
  close(found->second.descriptor);
  state().memory.erase(found);
  return kSuccess;
}
Result cuMemsetD8_v2(DeviceAddress address, unsigned char value, size_t bytes) {
  CALLED();
  if (!may_touch(address, bytes)) return kIllegalAddress;
  std::memset(reinterpret_cast<void*>(address), value, bytes);
  return kSuccess;
}
Result cuMemHostAlloc(void** address, size_t bytes, unsigned) {
  CALLED();
  *address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  const std::lock_guard guard(state().lock);
  state().memory[reinterpret_cast<uintptr_t>(*address)] = {Kind::kHost, bytes};
  return kSuccess;
}
Result cuMemFreeHost(void* address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  state().memory.erase(reinterpret_cast<uintptr_t>(address));
  std::free(address);
  return kSuccess;
}
Result cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  for (const auto& [at, memory] : state().memory)
    if (at < begin + bytes && begin < at + memory.bytes) return kAlreadyRegistered;
  state().memory[begin] = {Kind::kHost, bytes};
  return kSuccess;
}
Result cuMemHostUnregister(void* address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  return state().memory.erase(reinterpret_cast<uintptr_t>(address)) == 1 ? kSuccess : kInvalidValue;
}
Result cuMemHostGetDevicePointer_v2(DeviceAddress* out, void* address, unsigned) {
  CALLED();
  const std::lock_guard guard(state().lock);
  *out = reinterpret_cast<uintptr_t>(address);
  return find(*out, 1) == nullptr ? kInvalidValue : kSuccess;
}
Result cuPointerGetAttribute(void* value, int attribute, DeviceAddress address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto* const found = find(address, 1);
  if (found == nullptr) return kInvalidValue;
  const Memory& memory = found->second;
  const auto give = [value](auto given) {
    std::memcpy(value, &given, sizeof given);
    return kSuccess;
  };
  switch (attribute) {
    case kPointerMemoryType: return give(memory.kind == Kind::kHost ? 1u : kMemoryTypeDevice);
    case kPointerDeviceOrdinal: return give(memory.device);
    case kPointerBufferId: return give(static_cast<unsigned long long>(memory.identity));
    case kPointerIsLegacyIpcCapable: return give(memory.kind == Kind::kDevice && !memory.is_mapping ? 1u : 0u);
    case kPointerAllowedHandleTypes: return give(memory.is_mapping ? 1ull : 0ull);
    case kPointerMappingBase: return give(found->first);
    case kPointerMappingBytes: return give(static_cast<size_t>(memory.bytes));
    default: return kInvalidValue;
  }
}
Result cuMemGetAddressRange_v2(DeviceAddress* base, size_t* bytes, DeviceAddress address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto* const found = find(address, 1);
  if (found == nullptr) return kInvalidValue;
  *base = found->first;
  *bytes = found->second.bytes;
  return kSuccess;
}

Result cuIpcGetMemHandle(IpcHandle* handle, DeviceAddress address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || found->second.kind != Kind::kDevice || found->second.is_mapping) return kInvalidValue;
  struct stat facts;
  fstat(found->second.descriptor, &facts);
  const HandleWords words{getpid(), found->second.descriptor, found->second.bytes, static_cast<uint64_t>(facts.st_ino)};
  std::memset(handle->bytes, 0, sizeof handle->bytes);
  std::memcpy(handle->bytes, &words, sizeof words);
  return kSuccess;
}
Result cuIpcOpenMemHandle_v2(DeviceAddress* address, IpcHandle handle, unsigned) {
  CALLED();
  HandleWords words;
  std::memcpy(&words, handle.bytes, sizeof words);
  if (words.pid == getpid()) return kNoContext;
  const std::string path = "/proc/" + std::to_string(words.pid) + "/fd/" + std::to_string(words.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat facts;
  if (descriptor < 0 || fstat(descriptor, &facts) != 0 || static_cast<uint64_t>(facts.st_ino) != words.inode) return kInvalidValue;
  void* const made = map_memory(descriptor, words.bytes);
  const std::lock_guard guard(state().lock);
  for (const auto& [at, memory] : state().memory)
    if (memory.kind == Kind::kImport && memory.identity == words.inode) return 208;
  *address = reinterpret_cast<uintptr_t>(made);
  state().memory[*address] = {Kind::kImport, words.bytes, context_stack().back(), descriptor, true, false, words.inode};
  return kSuccess;
}
Result cuIpcCloseMemHandle(DeviceAddress address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || found->second.kind != Kind::kImport) return kInvalidValue;
  munmap(reinterpret_cast<void*>(address), found->second.bytes);
  close(found->second.descriptor);
  state().memory.erase(found);
  return kSuccess;
}

Result cuMemGetAllocationGranularity(size_t* bytes, const AllocationProperties*, int) {
  CALLED();
  *bytes = kGranularity;
  return kSuccess;
}
Result cuMemCreate(Allocation* handle, size_t bytes, const AllocationProperties* properties, unsigned long long) {
  CALLED();
  if (bytes % kGranularity != 0 || properties->requested_handle_types != kHandlePosixFd) return kInvalidValue;
  const int descriptor = make_memory(bytes);
  if (descriptor < 0) return kOutOfMemory;
  const std::lock_guard guard(state().lock);
  *handle = ++state().made;
  state().allocations[*handle] = descriptor;
  return kSuccess;
}
Result cuMemRelease(Allocation handle) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().allocations.find(handle);
  if (found == state().allocations.end()) return kInvalidValue;
  close(found->second);
  state().allocations.erase(found);
  return kSuccess;
}
Result cuMemAddressReserve(DeviceAddress* address, size_t bytes, size_t, DeviceAddress, unsigned long long) {
  CALLED();
  void* const made = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) return kOutOfMemory;
  *address = reinterpret_cast<uintptr_t>(made);
  const std::lock_guard guard(state().lock);
  state().memory[*address] = {Kind::kReserved, bytes, context_stack().back(), -1, false};
  return kSuccess;
}
Result cuMemAddressFree(DeviceAddress address, size_t bytes) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || found->second.kind != Kind::kReserved) return kInvalidValue;
  munmap(reinterpret_cast<void*>(address), bytes);
  state().memory.erase(found);
  return kSuccess;
}
Result cuMemMap(DeviceAddress address, size_t bytes, size_t, Allocation handle, unsigned long long) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto at = state().memory.find(address);
  const auto from = state().allocations.find(handle);
  if (at == state().memory.end() || at->second.bytes != bytes || from == state().allocations.end()) return kInvalidValue;
  struct stat facts;
  if (fstat(from->second, &facts) != 0 || static_cast<uint64_t>(facts.st_size) != bytes) return kInvalidValue;
  if (map_memory(from->second, bytes, reinterpret_cast<void*>(address)) == nullptr) return kOutOfMemory;
  at->second.kind = Kind::kDevice;
  at->second.is_mapping = true;
  at->second.identity = handle;
  at->second.descriptor = fcntl(from->second, F_DUPFD_CLOEXEC, 0);
  return kSuccess;
}
Result cuMemUnmap(DeviceAddress address, size_t bytes) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || !found->second.is_mapping) return kInvalidValue;
  mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  close(found->second.descriptor);
  found->second = {Kind::kReserved, bytes, found->second.device, -1, false};
  return kSuccess;
}
Result cuMemSetAccess(DeviceAddress address, size_t, const AccessDescription*, size_t count) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().memory.find(address);
  if (found == state().memory.end() || count == 0) return kInvalidValue;
  found->second.is_accessible = true;
  return kSuccess;
}
Result cuMemRetainAllocationHandle(Allocation* handle, void* address) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto* const found = find(reinterpret_cast<uintptr_t>(address), 1);
  if (found == nullptr || !found->second.is_mapping) return kInvalidValue;
  *handle = ++state().made;
  state().allocations[*handle] = fcntl(found->second.descriptor, F_DUPFD_CLOEXEC, 0);
  return kSuccess;
}
Result cuMemExportToShareableHandle(void* out, Allocation handle, int type, unsigned long long) {
  CALLED();
  const std::lock_guard guard(state().lock);
  const auto found = state().allocations.find(handle);
  if (found == state().allocations.end() || type != kHandlePosixFd) return kInvalidValue;
  const int descriptor = fcntl(found->second, F_DUPFD_CLOEXEC, 0);
  std::memcpy(out, &descriptor, sizeof descriptor);
  return kSuccess;
}
Result cuMemImportFromShareableHandle(Allocation* handle, void* from, int type) {
  CALLED();
  const int descriptor = fcntl(static_cast<int>(reinterpret_cast<uintptr_t>(from)), F_DUPFD_CLOEXEC, 0);
  if (type != kHandlePosixFd || descriptor < 0) return kInvalidValue;
  const std::lock_guard guard(state().lock);
  *handle = ++state().made;
  state().allocations[*handle] = descriptor;
  return kSuccess;
}

}  // extern "C"
