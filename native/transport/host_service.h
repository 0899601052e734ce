// The serving half of a host transport: takes connections of peers, tells them our pools, counts their work on our
// blocks in and out (grants), and hands their notifications up. A peer that dies takes its grants with it: the kernel
// closes its socket after its memory is gone, so none of its writes can come later. But a device may still write for a
// process whose socket is closed: where there are devices, grants stay until the process is gone altogether, as then the
// driver has ended its work. Progress thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "host_socket.h"
#include "pool.h"

namespace millrace::kv {

// Connections at once, and notifications of one peer that we do not know yet.
inline constexpr size_t kHostPeersMax = 4096;
inline constexpr size_t kHeldNotificationsMax = 256;
// Of one peer: as many as its operations can be.
inline constexpr size_t kGrantsMax = 65'536;

class HostService {
 public:
  using Announce = std::function<HostAnnouncement(const Pool&)>;

  // `has_devices`: peers work on our blocks with devices too.
  HostService(TransportHost* host, int epoll, Announce announce, bool has_devices);
  ~HostService();
  HostService(const HostService&) = delete;

  // Listens under the name. kSystem with the reason.
  Status listen(const std::string& name, const HostUuid& uuid, const HostUuid& token, std::string* error);
  void add_pool(Pool* pool);
  // kBusy while a peer has a grant there.
  Status remove_pool(Pool* pool);
  bool has_pool(const Pool* pool) const { return pools_.contains(pool->id); }
  const std::map<uint32_t, Pool*>& pools() const { return pools_; }
  // What connects with this identity is this peer, and what it has told us already is told now.
  void bind_peer(const HostUuid& uuid, uint32_t peer);
  void unbind_peer(const HostUuid& uuid);

  // True when the descriptor was ours, and what came there has been dealt with.
  bool ready(int descriptor);
  // Called every kHeartbeatMs.
  void send_heartbeats();

 private:
  struct Grant {
    uint32_t pool = 0;
    Status status = Status::kOk;
    std::vector<uint32_t> blocks;
  };
  struct Connection;
  // What a process had when its connection broke.
  struct Leftover {
    int pidfd = -1;
    uint64_t until_ns = 0;
    std::vector<Grant> grants;
  };

  void accept_all();
  bool serve(Connection& connection, const HostSocket::Incoming& incoming);
  bool greet(Connection& connection, const HostSocket::Incoming& incoming);
  bool grant(Connection& connection, const HostSocket::Incoming& incoming);
  void notified(Connection& connection, std::span<const uint8_t> bytes);
  Status enter(Pool* pool, uint32_t block, uint32_t generation, bool is_write);
  void release(Connection& connection, uint64_t operation);
  void withdraw(Grant& grant);
  void tell_pool(Connection& connection, const Pool& pool);
  void drop(int descriptor);
  void keep_until_gone(Connection& connection);
  bool process_ended(int pidfd);

  TransportHost* host_;
  int epoll_;
  Announce announce_;
  bool has_devices_;
  int listener_ = -1;
  HostUuid uuid_{};
  HostUuid token_{};
  std::map<uint32_t, Pool*> pools_;
  // Grants by pool.
  std::map<uint32_t, uint32_t> granted_;
  std::map<HostUuid, uint32_t> peers_;
  std::set<HostUuid> removed_;
  std::map<int, std::unique_ptr<Connection>> connections_;
  std::vector<Leftover> leftovers_;
};

}  // namespace millrace::kv
