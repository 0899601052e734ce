// The two records that a host transport keeps: a peer and an operation on its way. Private to native/transport.
#pragma once

#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "host_transport.h"

namespace millrace::kv {

struct HostTransport::Peer {
  Peer(int descriptor, int epoll) : socket(descriptor, epoll) {}
  ~Peer() {
    if (pidfd >= 0) close(pidfd);
  }
  Peer(const Peer&) = delete;

  uint32_t id = 0;
  HostUuid uuid{};
  HostSocket socket;
  HostProcess process;
  int pidfd = -1;
  bool is_welcome = false;
  bool is_lost = false;
  uint64_t heard_ns = 0;
  // Why `serve` returned false.
  std::string fault;
  std::map<uint32_t, HostPoolIdentity> identities;
  std::map<uint32_t, std::shared_ptr<RemotePool>> pools;
};

struct HostTransport::Flight {
  Operation operation;
  std::shared_ptr<Peer> peer;
  // Once it moves.
  std::shared_ptr<RemotePool> pool;
  std::vector<Run> runs;
  uint64_t bytes = 0;
  uint64_t submitted_ns = 0;
  Phase phase = Phase::kAwaitPool;
  bool has_asked_grant = false;
  // Why it ended, while a device is still at its bytes.
  std::optional<Status> ended;
  std::unique_ptr<Move> move;
};

}  // namespace millrace::kv
