// Transport for pools in the memory of GPUs (K3), and between those and host pools: within a process, and between processes
// of one host, which open each other's device memory by handles of the driver. Peers, generations, grants and notifications
// are those of the other host transports; bytes are moved by the initiator's GPU. An operation that was cancelled, or whose
// peer died, completes when the GPU is past what was queued for it, which is 1 GiB at most.
//
// The caller's side of order: what a block holds must be there before it is told to a peer or given to a write, so the
// streams that made it have been waited for; and after a completion any stream may use what arrived.
#pragma once

#include <memory>
#include <string>

#include "cuda_copy.h"
#include "cuda_memory.h"
#include "host_transport.h"

namespace millrace::kv {

class CudaTransport final : public HostTransport {
 public:
  static TransportInfo probe();
  // kUnsupported or kSystem with the reason. The host stays longer than the transport.
  static Status create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error);
  // Waits until the devices are past all that was queued.
  ~CudaTransport() override;

  Status add_pool(Pool* pool) override;
  Status remove_pool(Pool* pool) override;
  Cost cost(uint32_t peer, const Operation& operation, uint64_t bytes) override;
  Status submit(uint32_t peer, const Operation& operation) override;
  bool progress(std::vector<Completion>* completions) override;

 protected:
  bool can_share(const Pool&) const override { return true; }
  HostAnnouncement announce(const Pool& pool) const override;
  Status greet(const HostProcess& process, const HostDescribed& described, std::string* reason) override;
  // A pool that cannot be reached is no fault of the peer's: operations with it end with kUnsupported.
  Status reach(const HostUuid& peer, RemotePool* pool, int descriptor, std::string* error) override;
  Status begin(const HostProcess& process, const RemotePool& pool, const Operation& operation, std::span<const Run> runs,
               uint64_t bytes, std::unique_ptr<Move>* out) override;

 private:
  class CudaMove;
  struct OwnPool;
  struct RemoteMemory;
  // A pool's memory: of a device, or the host's (-1).
  struct Place {
    int device;
    uint64_t address;
    uint64_t bytes;
  };

  CudaTransport(TransportHost* host, const TransportInfo& info, const cuda::Api& api);
  cuda::CudaDevice* device(int ordinal);
  Status hold(int ordinal, std::shared_ptr<cuda::PrimaryContext>* out);
  // Where the device has a side's memory; host memory is registered at its first use.
  Status locate(const cuda::CudaDevice& device, const Place& place, std::shared_ptr<cuda::HostRegistration>* registration,
                cuda::Side* out);
  bool can_reach(const cuda::CudaDevice& device, int owner);

  const cuda::Api& api_;
  std::map<int, std::unique_ptr<cuda::CudaDevice>> devices_;
  std::map<int, std::shared_ptr<cuda::PrimaryContext>> contexts_;
  std::map<std::pair<int, int>, bool> reachable_;
  std::map<const Pool*, std::unique_ptr<OwnPool>> own_;
  uint64_t looked_ns_ = 0;
};

}  // namespace millrace::kv
