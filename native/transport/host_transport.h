// What the shm, cma and cuda transports share (K3): peers on this host, their pools as told over the control line, operations
// and their order, generations, grants, loss. How bytes are reached and moved is left to the three. All of it belongs to
// the agent's progress thread and runs in slices there.
//
// An operation waits for the peer's pool to be announced, then (writes into a pool with a block table, and reads
// where the table cannot be mapped) for the peer's grant, which counts it into the blocks so that the peer cannot hand
// them out anew; then its bytes move, one slice at a
// time, by priority and in turns among equals; reads compare generations before and after. A device
// may still be at bytes that this thread has no more to do with: then an operation that has ended is completed, its grant
// given back and its peer's memory let go when they are quiet, and not before. Only the waiting needs the
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
  // Stays for as long as an operation uses it, whatever becomes of the peer.
  struct RemotePool {
    HostPool facts{};
    // What the announcement says beyond the facts; of the transport's own format.
    std::vector<uint8_t> extra;
    // Of shm, and of host pools of cuda: mapped here.
    std::unique_ptr<Pool> memory;
    std::unique_ptr<TableMemory> table;
    // What else a transport keeps of it.
    std::shared_ptr<void> held;
  };

  // The bytes of one operation on their way.
  class Move {
   public:
    virtual ~Move() = default;
    // Goes on by about so many bytes; `*is_done` when there are no more. A failure ends the move.
    virtual Status step(uint64_t bytes_most, bool* is_done) = 0;
    // False while a step would only wait for a device.
    virtual bool is_ready() { return true; }
    // Nobody touches the bytes between two steps; false while a device does. Done is quiet; a failed step need not be.
    virtual bool is_quiet() { return true; }
  };

  // `extra_bytes`: of RemotePool::extra.
  HostTransport(TransportHost* host, const TransportInfo& info, size_t extra_bytes = 0);
  // Once, before anything else. kSystem with the reason.
  Status open(std::string* error);
  // For destructors, before what moves depend on goes: drops all operations, whose bytes are quiet, and the peers.
  void drop_all();

  // Whether peers can reach this pool this way, and what they are told of it.
  virtual bool can_share(const Pool& pool) const = 0;
  virtual HostAnnouncement announce(const Pool& pool) const = 0;
  // Whether this process can be reached at all, once connected.
  virtual Status greet(const HostProcess& process, const HostDescribed& described, std::string* reason) = 0;
  // Makes the pool reachable; the descriptor is taken over, -1 where none came.
  virtual Status reach(const HostUuid& peer, RemotePool* pool, int descriptor, std::string* error) = 0;
  // A failure ends the operation.
  virtual Status begin(const HostProcess& process, const RemotePool& pool, const Operation& operation,
                       std::span<const Run> runs, uint64_t bytes, std::unique_ptr<Move>* out) = 0;
  const HostUuid& uuid() const { return uuid_; }
  uint64_t now_ns() { return host_->now_ns(); }

 private:
  enum class Phase : uint8_t { kAwaitPool, kAwaitGrant, kMoving };
  struct Peer;
  struct Flight;

  bool poll_events();
  void tick();
  bool run_waiting();
  bool run_parked();
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
  // Completes it, or has it completed when its bytes are quiet.
  void complete(uint64_t id, Status status);
  void complete_now(uint64_t id, Status status);
  void complete_all_of(const Peer& peer, Status status, std::optional<uint32_t> pool = std::nullopt);
  void arm_timer();
  std::string name_of(const HostUuid& uuid) const;

  TransportHost* host_;
  TransportInfo info_;
  size_t extra_bytes_;
  int epoll_ = -1;
  int timer_ = -1;
  bool is_timer_short_ = false;
  HostUuid boot_{};
  HostUuid uuid_{};
  HostUuid token_{};
  uint64_t heartbeat_ns_ = 0;
  uint64_t waiting_scan_ns_ = 0;
  std::unique_ptr<HostService> service_;
  std::map<uint32_t, std::shared_ptr<Peer>> peers_;
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
  // Those that a device works at, polled at every call of `progress`.
  std::vector<uint64_t> parked_;
  std::vector<Completion> completions_;
};

}  // namespace millrace::kv
