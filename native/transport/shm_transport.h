// Transport between processes of one host through shared memory (K3): the peer's pool is a memfd that came over the
// control line and is mapped here, and reads and writes are copies by the initiator's progress thread, which need
// nothing of the peer while they run. For pools of the agent's own making; registered memory goes by cma.
#pragma once

#include <memory>
#include <string>

#include "host_transport.h"

namespace millrace::kv {

class ShmTransport final : public HostTransport {
 public:
  static TransportInfo probe();
  // kUnsupported or kSystem with the reason. The host stays longer than the transport.
  static Status create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error);
  Cost cost(uint32_t peer, const Operation& operation, uint64_t bytes) override;

 protected:
  bool can_share(const Pool& pool) const override { return pool.descriptor() >= 0; }
  HostAnnouncement announce(const Pool& pool) const override;
  Status greet(const HostProcess& process, const HostDescribed& described, std::string* reason) override;
  Status reach(const HostUuid& peer, RemotePool* pool, int descriptor, std::string* error) override;
  Status begin(const HostProcess& process, const RemotePool& pool, const Operation& operation, std::span<const Run> runs,
               uint64_t bytes, std::unique_ptr<Move>* out) override;

 private:
  class ShmMove;
  using HostTransport::HostTransport;
};

}  // namespace millrace::kv
