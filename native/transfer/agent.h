// The transfer agent: pools, peers, transports and one progress thread. One per process is usual, several are possible.
// Callers of any thread submit into a ring and take completions from a ring; the data path takes no lock that the progress
// thread holds for longer than the copy of a pointer, and the progress thread never calls JavaScript: it wakes by a callback
// that must only wake. Pools and peers come and go by commands that the progress thread carries out while the caller waits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "metadata.h"
#include "pool.h"
#include "transport.h"

namespace millrace::kv {

// The longest notification of a caller; the agent's envelope takes the rest of kNotificationBytesMax.
inline constexpr uint32_t kCallerNotificationBytesMax = kNotificationBytesMax - 16;
inline constexpr uint32_t kBlocksPerTransferMax = 1u << 20;
inline constexpr uint32_t kOperationsMost = 1u << 16;
inline constexpr uint32_t kPeersMax = 4096;
inline constexpr uint32_t kPortsMax = 256;

class Port;

struct AgentOptions {
  std::string name;
  // All zero: a random one. Who restarts under a fixed identity gives it, and peers fence its earlier life.
  Uuid uuid{};
  // Transports that may be used, by name; empty: all that are available.
  std::vector<std::string> transports;
  std::string listen_host = "127.0.0.1";  // of tcp
  uint32_t operations_max = 4096;
  // Transports besides the built-in ones: those of a plugin, or with faults for a test.
  std::vector<TransportMaker> more_transports;
  // Of CLOCK_MONOTONIC when empty. Any thread calls it.
  std::function<uint64_t()> now_ns;
  // Called by the progress thread when the event ring went from empty to not empty: then poll until nothing comes.
  std::function<void()> wake;
  // Spins so long before it sleeps.
  uint32_t spin_us = 20;
};

// kCompletion: `id` is the transfer; its blocks are quiet. kPeerLost: no transport reaches the peer any more; adding it again
// reconnects; `notification` has the reason in words. kLeaseExpired: `id` is the lease, `status` why (kDeadline: time, kOk: the
// peer is done, kPeerLost: it died); the owner calls `release_lease`.
enum class EventKind : uint8_t { kCompletion, kNotification, kPeerUp, kPeerLost, kLeaseExpired };

struct Event {
  EventKind kind = EventKind::kCompletion;
  Status status = Status::kOk;
  uint64_t id = 0;  // transfer or lease
  uint32_t peer = 0;
  uint64_t bytes = 0;
  uint64_t posted_ns = 0, begun_ns = 0, done_ns = 0;
  // Null where none was chosen.
  const char* transport = nullptr;
  std::vector<uint8_t> notification;
};

struct TransferRequest {
  uint32_t peer = 0;
  Direction direction = Direction::kRead;
  uint32_t local_pool = 0;
  uint32_t remote_pool = 0;
  Part part;
  std::vector<uint32_t> local_blocks;
  std::vector<uint32_t> remote_blocks;
  // Of the local blocks; empty: those of now. From the return of `submit` to the completion they are not reused.
  std::vector<uint32_t> local_generations;
  // Required where the peer's pool keeps generations.
  std::vector<uint32_t> remote_generations;
  std::vector<uint8_t> notification;
  Integrity integrity = Integrity::kOff;
  Reader reader = Reader::kUnknown;
  uint8_t priority = 0;
  uint64_t deadline_ns = 0;
  // The peer's lease on the remote blocks, renewed as long as the transfer runs; 0: none.
  uint64_t lease = 0;
  // Empty: the cheapest of those that reach the peer; else the one of this name or kUnsupported.
  std::string transport;
};

class Agent {
 public:
  static Status create(const AgentOptions& options, std::unique_ptr<Agent>* out, std::string* error);
  // `close`, and then the pools go.
  ~Agent();

  static std::vector<TransportInfo> probe();

  // The pool belongs to the agent from here on. Peers learn of it by metadata that is made after this.
  Status add_pool(std::unique_ptr<Pool> pool, uint32_t* id_out, std::string* error);
  // kBusy while anything is in flight there, or leased.
  Status remove_pool(uint32_t id);
  // Until the pool is removed.
  Pool* pool(uint32_t id);

  // Everything that a peer needs: version, uuid, epoch, pools with layouts, each transport's part. Any channel carries it.
  std::vector<uint8_t> metadata();
  // kMismatch with both values in `error`. Known again under the same epoch: its pools are brought up to date, a lost
  // connection is made again, and the number stays. Under a later epoch: the old one is fenced, its transfers end with
  // kStale, and the new one has another number. kStale for an epoch that was fenced.
  Status add_peer(std::span<const uint8_t> metadata, uint32_t* peer_out, std::string* error);
  // Its transfers end with kCancelled.
  Status remove_peer(uint32_t peer);

  // Returns the transfer's id (> 0) or a Status below zero, and then nothing was begun; `error` says why. Exactly one
  // kCompletion follows. kFull until completions have been polled.
  int64_t submit(TransferRequest request, std::string* error);
  // Completion comes sooner: kCancelled, or what was first. No effect on an id that has completed.
  void cancel(uint64_t id);
  // Sent in order of the calls, per peer; not after the peer was lost.
  Status notify(uint32_t peer, std::span<const uint8_t> bytes);

  // Serves a port (port.h) until the port or the agent is closed. kFull beyond kPortsMax.
  Status add_port(std::shared_ptr<Port> port, std::string* error);

  // A lease on blocks here for a peer: renewed by the peer's heartbeats, ended by time, by the peer or its death. Called by
  // the owner of the pool's table, as blocks that are ready are pinned by it, and so is `release_lease`. Blocks that are
  // reserved or filling are held for the peer's writes instead, and `peer` must be given. `peer` 0: whoever renews it.
  int64_t lease(uint32_t pool, std::span<const uint32_t> blocks, uint32_t ttl_ms, uint32_t peer, std::string* error);
  // Pins end at once. Blocks held for writes are let go when the peer has said that none of its transfers is under the
  // lease any more, or is lost.
  Status release_lease(uint64_t id);
  // The other side: renews a peer's lease every kHeartbeatMs, until `drop_lease` or the peer's loss.
  Status hold_lease(uint32_t peer, uint64_t lease);
  Status drop_lease(uint32_t peer, uint64_t lease);

  // The clock of deadlines and of the times in events.
  uint64_t now_ns() const;

  // Takes up to `max` events that have happened. Any one thread at a time.
  uint32_t poll(uint32_t max, std::vector<Event>* out);
  // JSON for people and metrics.
  std::string stats();

  // Cancels everything, waits until its bytes are quiet, joins the thread. The events, kClosed among them, can be polled
  // after it. Further calls answer kClosed.
  void close();

 private:
  struct State;
  static Status make_transports(State& state, std::string* error);
  std::unique_ptr<State> state_;
  explicit Agent(std::unique_ptr<State> state);
};

}  // namespace millrace::kv
