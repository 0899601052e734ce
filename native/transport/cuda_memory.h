// Memory that devices reach (K0, K3): contexts held, pools made on a device, host memory registered with the driver, and
// device memory of other processes, told and opened. What is opened or registered is shared by all agents of the process,
// as the driver knows each memory once; the last that uses it lets it go. Any thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda_library.h"
#include "pool.h"

namespace millrace::kv::cuda {

// A device's primary context, which torch and others in the process use too.
class PrimaryContext {
 public:
  static Status hold(const Api& api, int ordinal, std::shared_ptr<PrimaryContext>* out, std::string* error);
  ~PrimaryContext() { api_.cuDevicePrimaryCtxRelease(device_); }
  PrimaryContext(const PrimaryContext&) = delete;

  const Api& api() const { return api_; }
  Context context() const { return context_; }
  int ordinal() const { return ordinal_; }

 private:
  PrimaryContext(const Api& api, int ordinal) : api_(api), ordinal_(ordinal) {}
  const Api& api_;
  int ordinal_;
  Device device_ = 0;
  Context context_ = nullptr;
};

// The driver's number of the device of this identity, -1 where it is not visible here.
int ordinal_of(const Api& api, const std::array<uint8_t, 16>& uuid);

// How another process may come by a pool's memory.
enum class Way : uint32_t {
  kNone = 0,    // not at all: only agents of this process reach it
  kMemfd = 1,   // host memory, by its descriptor
  kIpc = 2,     // a handle of the driver, for what it allocates by cuMemAlloc
  kPosixFd = 3, // a descriptor of the driver, for what cuMemCreate was told may be exported so
  kFabric = 4,  // a handle that works between the hosts of one NVLink fabric
};

// Told to peers for each pool, as it lies in memory.
struct PoolFacts {
  uint32_t version;
  Way way;
  uint32_t is_device;
  uint32_t reserved;
  std::array<uint8_t, 16> device;
  // Of the allocation that the handle names, and where in it the pool begins.
  uint64_t allocation_bytes;
  uint64_t offset;
  // Tells apart what is allocated anew at the same place.
  uint64_t buffer;
  std::array<uint8_t, 64> handle;
};
inline constexpr uint32_t kPoolFactsVersion = 1;

// Fills in `way` and what belongs to it, and the descriptor, which is the caller's; kNone with the reason in `why`.
void tell_memory(const PrimaryContext& holder, uint64_t address, uint64_t bytes, PoolFacts* facts, int* descriptor,
                 std::string* why);

// Device memory of another process, open as long as this lives.
class Import {
 public:
  // `descriptor` stays the caller's.
  static Status open(const std::shared_ptr<PrimaryContext>& holder, const PoolFacts& facts, int descriptor,
                     std::shared_ptr<Import>* out, std::string* error);
  ~Import();
  Import(const Import&) = delete;
  DeviceAddress address() const { return address_; }

 private:
  explicit Import(std::shared_ptr<PrimaryContext> holder) : holder_(std::move(holder)) {}
  Status open_handle(const PoolFacts& facts, std::string* error);
  Status map(const PoolFacts& facts, int descriptor, std::string* error);
  std::shared_ptr<PrimaryContext> holder_;
  DeviceAddress address_ = 0;
  // Of a mapping of ours; else what was opened by a handle is shared.
  uint64_t mapped_bytes_ = 0;
  bool is_mapped_ = false;
  bool is_shared_ = false;
  std::array<uint8_t, 64> handle_{};
  uint64_t buffer_ = 0;
};

// Host memory that the driver knows and has pinned, as long as this lives.
class HostRegistration {
 public:
  // Pins the pages, which takes time, at the first call for this memory.
  static Status make(const std::shared_ptr<PrimaryContext>& holder, void* address, uint64_t bytes,
                     std::shared_ptr<HostRegistration>* out, std::string* error);
  ~HostRegistration();
  HostRegistration(const HostRegistration&) = delete;
  // Where devices see it.
  DeviceAddress device_address() const { return device_address_; }

 private:
  HostRegistration(std::shared_ptr<PrimaryContext> holder, void* address, uint64_t bytes)
      : holder_(std::move(holder)), address_(address), bytes_(bytes) {}
  std::shared_ptr<PrimaryContext> holder_;
  void* address_;
  uint64_t bytes_;
  DeviceAddress device_address_ = 0;
};

// Devices that can reach the memory of this one, itself among them, get access to a mapping.
Result allow_access(const PrimaryContext& holder, DeviceAddress address, uint64_t bytes);

}  // namespace millrace::kv::cuda
