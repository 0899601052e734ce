// Transport between processes of one host for memory that is not ours to map (K3): torch's, numpy's, a driver's. The kernel
// copies between the two address spaces, 512 pieces a call, by the initiator's progress thread. About half of what shm
// does, and less on small pages, so the agent prefers shm where both can.
#pragma once

#include <memory>
#include <string>

#include "host_transport.h"

namespace millrace::kv {

class CmaTransport final : public HostTransport {
 public:
  static TransportInfo probe();
  // kUnsupported or kSystem with the reason. The host stays longer than the transport.
  static Status create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error);
  Cost cost(uint32_t peer, const Operation& operation, uint64_t bytes) override;

 protected:
  bool can_share(const Pool&) const override { return true; }
  HostAnnouncement announce(const Pool& pool) const override;
  // Reads the peer's identity out of its memory: says whether the kernel lets us, and that this is the process.
  Status greet(const HostProcess& process, const HostDescribed& described, std::string* reason) override;
  Status reach(const HostUuid& peer, RemotePool* pool, int descriptor, std::string* error) override;
  Status begin(const HostProcess& process, const RemotePool& pool, const Operation& operation, std::span<const Run> runs,
               uint64_t bytes, std::unique_ptr<Move>* out) override;

 private:
  class CmaMove;
  using HostTransport::HostTransport;
};

}  // namespace millrace::kv
