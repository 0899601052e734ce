// What the shm and cma transports share (K3): peers on this host, their pools as told over the control line, operations
// and their order, generations, grants, loss. How bytes are reached and moved is left to the two. All of it belongs to
// the agent's progress thread and runs in slices there.
//
// An operation waits for the peer's pool to be announced, then (writes into a pool with a block table, and reads
// where the table cannot be mapped) for the peer's grant, which counts it into the blocks so that the peer cannot hand
// them out anew; then its bytes move, one slice at a
// time, by priority and in turns among equals; reads compare generations before and after. Only the waiting needs the
// peer's progress thread, so silence of a peer ends waiting operations and no others: that a process is dead, its socket
// and its pidfd say at once, and nothing else says it for certain.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "host_service.h"
#include "host_socket.h"
#include "pool.h"
#include "transport.h"

namespace millrace::kv {

// Operations at once; more is kFull.
inline constexpr size_t kHostOperationsMax = 65'536;

// Which memfd a pool is, in the kernel's words; zeros where it has an address only.
struct HostPoolIdentity {
  uint32_t pool;
  uint32_t reserved;
  uint64_t device;
  uint64_t inode;
};

// The described part of an agent's metadata; `pools` identities follow.
struct HostDescribed {
  uint32_t version;
  uint32_t uid;
  uint32_t pools;
  uint32_t reserved;
  HostUuid boot;
  HostUuid uuid;
  HostUuid token;
  // Where `uuid` lies in the memory of the process that described it.
  uint64_t uuid_address;
};

class HostTransport : public Transport {
 public:
  ~HostTransport() override;

  const TransportInfo& info() const override { return info_; }
  Status add_pool(Pool* pool) override;
  Status remove_pool(Pool* pool) override;
  void describe(std::vector<uint8_t>* out) override;
  // For a peer that is known already: its pools as described now, or a new connection when it was lost.
  Status add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) override;
  void remove_peer(uint32_t peer) override;
  Status submit(uint32_t peer, const Operation& operation) override;
  void cancel(uint64_t id) override;
  Status notify(uint32_t peer, std::span<const uint8_t> bytes) override;
  bool progress(std::vector<Completion>* completions) override;
  // Sockets, deaths and times. What submit and cancel began is for the call of progress that comes after them.
  int wait_descriptor() override { return epoll_; }

 protected:
  struct RemotePool {
    HostPool facts{};
    // Of shm: mapped here.
    std::unique_ptr<Pool> memory;
    std::unique_ptr<TableMemory> table;
  };

  // The bytes of one operation on their way.
  class Move {
   public:
    virtual ~Move() = default;
    // Goes on by about so many bytes; `*is_done` when there are no more. A failure ends the move.
    virtual Status step(uint64_t bytes_most, bool* is_done) = 0;
  };

  HostTransport(TransportHost* host, const TransportInfo& info);
  // Once, before anything else. kSystem with the reason.
  Status open(std::string* error);

  // Whether peers can reach this pool this way, and what they are told of it.
  virtual bool can_share(const Pool& pool) const = 0;
  virtual HostPool announce(const Pool& pool) const = 0;
  // Whether this process can be reached at all, once connected.
  virtual Status greet(const HostProcess& process, const HostDescribed& described, std::string* reason) = 0;
  // Makes the pool reachable; the descriptor is taken over, -1 where none came.
  virtual Status reach(RemotePool* pool, int descriptor, std::string* error) = 0;
  virtual std::unique_ptr<Move> begin(const HostProcess& process, const RemotePool& pool, const Operation& operation,
                                      std::span<const Run> runs, uint64_t bytes) = 0;
  uint64_t now_ns() { return host_->now_ns(); }

 private:
  enum class Phase : uint8_t { kAwaitPool, kAwaitGrant, kMoving };
  struct Peer;
  struct Flight;

  bool poll_events();
  void tick();
  bool run_waiting();
  void run_slice();
  bool map_more();
  void peer_ready(Peer& peer);
  bool serve(Peer& peer, const HostSocket::Incoming& incoming);
  bool add_remote_pool(Peer& peer, const HostSocket::Incoming& incoming);
  void granted(Peer& peer, const HostSocket::Incoming& incoming);
  void lose(Peer& peer, const std::string& why);
  void unwatch(const Peer& peer);
  // Next phase of a flight whose pool may be known now; it may be complete after that.
  void start(Flight& flight);
  Status check_before(const Flight& flight, const RemotePool& pool) const;
  Status check_after(const Flight& flight, const RemotePool& pool) const;
  void ask_grant(Flight& flight);
  void set_moving(Flight& flight);
  std::optional<Status> overdue(const Flight& flight, uint64_t now) const;
  void finish(Flight& flight);
  void complete(uint64_t id, Status status);
  void complete_all_of(const Peer& peer, Status status, std::optional<uint32_t> pool = std::nullopt);
  void arm_timer();
  std::string name_of(const HostUuid& uuid) const;

  TransportHost* host_;
  TransportInfo info_;
  int epoll_ = -1;
  int timer_ = -1;
  bool is_timer_short_ = false;
  HostUuid boot_{};
  HostUuid uuid_{};
  HostUuid token_{};
  uint64_t heartbeat_ns_ = 0;
  uint64_t waiting_scan_ns_ = 0;
  std::unique_ptr<HostService> service_;
  std::map<uint32_t, std::unique_ptr<Peer>> peers_;
  // Sockets and pidfds.
  std::map<int, Peer*> by_descriptor_;
  std::map<uint64_t, std::unique_ptr<Flight>> flights_;
  size_t waiting_ = 0;
  // Of completed operations: long lists would else be new pages every time.
  std::vector<std::vector<Run>> spare_runs_;
  // Pools that came and are not yet in the page tables.
  bool has_unmapped_ = false;
  // Moving ones, by priority; ids of flights that have completed meanwhile are skipped.
  std::map<uint8_t, std::deque<uint64_t>> moving_;
  std::vector<Completion> completions_;
};

}  // namespace millrace::kv
