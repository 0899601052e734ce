// Pools told and reached, and operations given to devices. See cuda_transport.h.
#include "cuda_transport.h"

#include <sched.h>
#include <unistd.h>

#include <cstring>

#include "cuda_local.h"

namespace millrace::kv {
namespace {

using cuda::PoolFacts;
using cuda::PrimaryContext;
using cuda::Way;

constexpr uint32_t kAllKinds =
    1u << static_cast<uint32_t>(MemoryKind::kHost) | 1u << static_cast<uint32_t>(MemoryKind::kDevice);
constexpr uint64_t kLookNs = 1'000'000;
// How long a transport that goes waits for another agent of this process to be done with its pools.
constexpr uint64_t kLeaveNs = 5'000'000'000;
// Not measured: a bus of PCIe 5, the memory of one device, and what a launch and a grant cost.
constexpr uint64_t kReadLatencyNs = 15'000;
constexpr uint64_t kGrantLatencyNs = 40'000;
constexpr uint64_t kBusBytesPerSecond = 50'000'000'000;
constexpr uint64_t kDeviceBytesPerSecond = 500'000'000'000;

PoolFacts facts_of(std::span<const uint8_t> extra) {
  PoolFacts facts;
  std::memcpy(&facts, extra.data(), sizeof facts);
  return facts;
}

}  // namespace

struct CudaTransport::OwnPool {
  explicit OwnPool(const Pool& pool) : id(pool.id), local(std::make_shared<LocalPool>(reinterpret_cast<uintptr_t>(pool.address()))) {}
  ~OwnPool() {
    if (descriptor >= 0) ::close(descriptor);
  }
  OwnPool(const OwnPool&) = delete;
  uint32_t id;
  PoolFacts facts{};
  // Of the driver's, for device memory; ours.
  int descriptor = -1;
  std::shared_ptr<LocalPool> local;
  std::shared_ptr<cuda::HostRegistration> registration;
};

struct CudaTransport::RemoteMemory {
  // -1: host.
  int device = -1;
  uint64_t address = 0;
  // One of these two, for device memory; `local` also for host memory of this process.
  std::shared_ptr<cuda::Import> import;
  std::shared_ptr<LocalPool> local;
  // Goes before the mapping that it is of: see RemotePool.
  std::shared_ptr<cuda::HostRegistration> registration;
};

class CudaTransport::CudaMove final : public Move {
 public:
  // `local` is in use, where there is one, until this goes.
  CudaMove(const cuda::CopyOrder& order, std::shared_ptr<LocalPool> local) : local_(std::move(local)), copy_(order) {}
  ~CudaMove() override {
    if (local_ != nullptr) local_->unuse();
  }

  Status step(uint64_t, bool* is_done) override { return copy_.step(is_done); }
  bool is_ready() override { return copy_.is_ready(); }
  bool is_quiet() override { return copy_.is_quiet(); }

 private:
  std::shared_ptr<LocalPool> local_;
  cuda::DeviceCopy copy_;
};

TransportInfo CudaTransport::probe() {
  TransportInfo info{"cuda", false, "", kAllKinds, true, true};
  const cuda::Api* const api = cuda::library(&info.reason);
  if (api == nullptr) return info;
  info.available = true;
  int devices = 0;
  int version = 0;
  cuda::Device device = 0;
  char name[100] = "unnamed";
  api->cuDeviceGetCount(&devices);
  api->cuDriverGetVersion(&version);
  if (api->cuDeviceGet(&device, 0) == cuda::kSuccess) api->cuDeviceGetName(name, sizeof name, device);
  info.reason = std::to_string(devices) + " device(s), the first: " + name + "; driver for CUDA " +
                std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
                "; a context costs some hundred MiB of device memory in each process";
  return info;
}

CudaTransport::CudaTransport(TransportHost* host, const TransportInfo& info, const cuda::Api& api)
    : HostTransport(host, info, sizeof(PoolFacts)), api_(api) {}

Status CudaTransport::create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error) {
  const TransportInfo info = probe();
  const cuda::Api* const api = cuda::library(error);
  if (api == nullptr) return Status::kUnsupported;
  std::unique_ptr<CudaTransport> made(new CudaTransport(host, info, *api));
  const Status status = made->open(error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

CudaTransport::~CudaTransport() {
  for (auto& [ordinal, device] : devices_) {
    if (device != nullptr) device->synchronize();
  }
  drop_all();
  // Agents of this process have been told by the socket that we are gone, and end what they have queued for our pools.
  const uint64_t until = now_ns() + kLeaveNs;
  for (const auto& [pool, own] : own_) {
    // Not by the pool, which may have gone before us.
    drop_local_pool(uuid(), own->id);
    while (!own->local->close() && now_ns() < until) sched_yield();
  }
}

// Null where it cannot be had: tried anew at the next operation.
cuda::CudaDevice* CudaTransport::device(int ordinal) {
  std::unique_ptr<cuda::CudaDevice>& place = devices_[ordinal];
  std::string error;
  if (place == nullptr) cuda::CudaDevice::open(api_, ordinal, &place, &error);
  return place.get();
}

Status CudaTransport::hold(int ordinal, std::shared_ptr<PrimaryContext>* out) {
  std::shared_ptr<PrimaryContext>& place = contexts_[ordinal];
  std::string error;
  const Status status = place == nullptr ? PrimaryContext::hold(api_, ordinal, &place, &error) : Status::kOk;
  *out = place;
  return status;
}

Status CudaTransport::add_pool(Pool* pool) {
  if (own_.contains(pool)) return Status::kInvalid;
  auto own = std::make_unique<OwnPool>(*pool);
  own->facts.version = cuda::kPoolFactsVersion;
  if (pool->kind() == MemoryKind::kDevice) {
    std::shared_ptr<PrimaryContext> holder;
    cuda::Uuid identity{};
    cuda::Device number = 0;
    std::string why;
    if (hold(pool->device(), &holder) != Status::kOk) return Status::kNotFound;
    if (api_.cuDeviceGet(&number, pool->device()) != cuda::kSuccess ||
        api_.cuDeviceGetUuid(&identity, number) != cuda::kSuccess) {
      return Status::kSystem;
    }
    own->facts.is_device = 1;
    std::memcpy(own->facts.device.data(), identity.bytes, own->facts.device.size());
    cuda::tell_memory(*holder, own->local->address(), pool->bytes(), &own->facts, &own->descriptor, &why);
  } else {
    own->facts.way = pool->descriptor() >= 0 ? Way::kMemfd : Way::kNone;
  }
  const std::shared_ptr<LocalPool> local = own->local;
  own_[pool] = std::move(own);
  const Status status = HostTransport::add_pool(pool);
  if (status != Status::kOk) {
    own_.erase(pool);
    return status;
  }
  share_local_pool(uuid(), pool->id, local);
  return Status::kOk;
}

Status CudaTransport::remove_pool(Pool* pool) {
  const auto found = own_.find(pool);
  if (found == own_.end()) return Status::kNotFound;
  LocalPool& local = *found->second->local;
  const Status status = local.close() ? HostTransport::remove_pool(pool) : Status::kBusy;
  if (status != Status::kOk) {
    local.reopen();
    return status;
  }
  drop_local_pool(uuid(), pool->id);
  own_.erase(found);
  return Status::kOk;
}

HostAnnouncement CudaTransport::announce(const Pool& pool) const {
  const OwnPool& own = *own_.at(&pool);
  HostAnnouncement announced;
  announced.descriptor = own.facts.way == Way::kMemfd ? pool.descriptor() : own.descriptor;
  announced.facts = {pool.id, announced.descriptor >= 0 ? 1u : 0u, pool.bytes(), own.local->address(), 0, 0, 0};
  const std::span<const uint8_t> extra = bytes_of(own.facts);
  announced.extra.assign(extra.begin(), extra.end());
  return announced;
}

Status CudaTransport::greet(const HostProcess&, const HostDescribed&, std::string*) { return Status::kOk; }

Status CudaTransport::reach(const HostUuid& peer, RemotePool* pool, int descriptor, std::string* error) {
  const PoolFacts facts = facts_of(pool->extra);
  const bool needs_descriptor = facts.way == Way::kMemfd || facts.way == Way::kPosixFd;
  const bool is_inside = facts.allocation_bytes <= 2 * kPoolBytesMax && facts.offset <= facts.allocation_bytes &&
                         pool->facts.bytes <= facts.allocation_bytes - facts.offset;
  const bool is_sound = facts.version == cuda::kPoolFactsVersion && facts.way <= Way::kFabric && facts.is_device <= 1 &&
                        needs_descriptor == (descriptor >= 0) &&
                        (facts.way == Way::kNone || (facts.way == Way::kMemfd ? facts.is_device == 0 : is_inside));
  if (!is_sound) {
    if (descriptor >= 0) ::close(descriptor);
    *error = "what it says of pool " + std::to_string(pool->facts.id) + " does not fit";
    return Status::kInvalid;
  }
  auto memory = std::make_shared<RemoteMemory>();
  memory->device = facts.is_device != 0 ? cuda::ordinal_of(api_, facts.device) : -1;
  memory->local = find_local_pool(peer, pool->facts.id);
  if (memory->local == nullptr && facts.way == Way::kMemfd) {
    const Status status = Pool::map(descriptor, pool->facts.bytes, &pool->memory, error);
    if (status == Status::kOk) memory->address = reinterpret_cast<uintptr_t>(pool->memory->address());
    if (status == Status::kOk) pool->held = std::move(memory);
    return status;
  }
  if (memory->local != nullptr) {
    memory->address = memory->local->address();
  } else if (memory->device >= 0 && facts.way != Way::kNone) {
    std::shared_ptr<PrimaryContext> holder;
    std::string why;
    if (hold(memory->device, &holder) == Status::kOk &&
        cuda::Import::open(holder, facts, descriptor, &memory->import, &why) == Status::kOk) {
      memory->address = memory->import->address() + facts.offset;
    }
  }
  if (descriptor >= 0) ::close(descriptor);
  const bool is_visible = facts.is_device == 0 || memory->device >= 0;
  if (is_visible && memory->address != 0) pool->held = std::move(memory);
  return Status::kOk;
}

bool CudaTransport::can_reach(const cuda::CudaDevice& device, int owner) {
  if (owner == device.ordinal()) return true;
  const auto [place, is_new] = reachable_.try_emplace({device.ordinal(), owner}, false);
  if (!is_new) return place->second;
  std::shared_ptr<PrimaryContext> holder;
  cuda::Device own = 0;
  cuda::Device other = 0;
  int can = 0;
  if (hold(owner, &holder) != Status::kOk || api_.cuDeviceGet(&own, device.ordinal()) != cuda::kSuccess ||
      api_.cuDeviceGet(&other, owner) != cuda::kSuccess ||
      api_.cuDeviceCanAccessPeer(&can, own, other) != cuda::kSuccess || can == 0) {
    return false;
  }
  const cuda::Current current(api_, device.context());
  const cuda::Result result = api_.cuCtxEnablePeerAccess(holder->context(), 0);
  place->second = result == cuda::kSuccess || result == cuda::kPeerAccessAlreadyEnabled;
  return place->second;
}

Status CudaTransport::locate(const cuda::CudaDevice& device, const Place& place,
                             std::shared_ptr<cuda::HostRegistration>* registration, cuda::Side* out) {
  out->device = place.device;
  out->address = place.address;
  if (place.device >= 0) {
    out->kernel_address = can_reach(device, place.device) ? place.address : 0;
    return Status::kOk;
  }
  std::shared_ptr<PrimaryContext> holder;
  std::string error;
  Status status = *registration == nullptr ? hold(device.ordinal(), &holder) : Status::kOk;
  if (holder != nullptr)
    status = cuda::HostRegistration::make(holder, reinterpret_cast<void*>(place.address), place.bytes, registration, &error);
  if (status == Status::kOk) out->kernel_address = (*registration)->device_address();
  return status;
}

Status CudaTransport::begin(const HostProcess&, const RemotePool& pool, const Operation& operation,
                            std::span<const Run> runs, uint64_t, std::unique_ptr<Move>* out) {
  auto* const memory = static_cast<RemoteMemory*>(pool.held.get());
  OwnPool& own = *own_.at(operation.local);
  const int here = operation.local->kind() == MemoryKind::kDevice ? operation.local->device() : -1;
  if (memory == nullptr || (here < 0 && memory->device < 0)) return Status::kUnsupported;
  cuda::CudaDevice* const by = device(here >= 0 ? here : memory->device);
  if (by == nullptr || by->is_broken()) return Status::kSystem;
  cuda::Side local;
  cuda::Side remote;
  Status status = locate(*by, {here, own.local->address(), operation.local->bytes()}, &own.registration, &local);
  if (status == Status::kOk)
    status = locate(*by, {memory->device, memory->address, pool.facts.bytes}, &memory->registration, &remote);
  if (status != Status::kOk) return status;
  const bool is_read = operation.direction == Direction::kRead;
  cuda::CopyOrder order;
  order.device = by;
  order.source = is_read ? remote : local;
  order.target = is_read ? local : remote;
  order.transform = operation.transform;
  order.source_blocks = is_read ? operation.remote_blocks : operation.local_blocks;
  order.target_blocks = is_read ? operation.local_blocks : operation.remote_blocks;
  order.runs = runs;
  order.integrity = operation.integrity;
  const bool can_check = by->has_kernels() && local.kernel_address != 0 && remote.kernel_address != 0;
  if (operation.integrity != Integrity::kOff && !can_check) return Status::kUnsupported;
  if (memory->local != nullptr && !memory->local->use()) return Status::kPeerLost;
  *out = std::make_unique<CudaMove>(order, memory->local);
  return Status::kOk;
}

Cost CudaTransport::cost(uint32_t, const Operation& operation, uint64_t) {
  const bool is_host_here = operation.local->kind() == MemoryKind::kHost;
  const bool is_host_there = operation.remote_kind == MemoryKind::kHost;
  // Never chosen where there is another: see submit.
  if (is_host_here && is_host_there) return {UINT64_MAX / 4, UINT64_MAX};
  const uint64_t latency = operation.direction == Direction::kRead ? kReadLatencyNs : kGrantLatencyNs;
  return {latency, is_host_here || is_host_there ? kBusBytesPerSecond : kDeviceBytesPerSecond};
}

Status CudaTransport::submit(uint32_t peer, const Operation& operation) {
  const bool is_host_only = operation.local != nullptr && operation.local->kind() == MemoryKind::kHost &&
                            operation.remote_kind == MemoryKind::kHost;
  return is_host_only ? Status::kUnsupported : HostTransport::submit(peer, operation);
}

bool CudaTransport::progress(std::vector<Completion>* completions) {
  const uint64_t now = now_ns();
  if (now - looked_ns_ >= kLookNs) {
    looked_ns_ = now;
    for (auto& [ordinal, device] : devices_) {
      if (device != nullptr) device->look();
    }
  }
  return HostTransport::progress(completions);
}

}  // namespace millrace::kv
