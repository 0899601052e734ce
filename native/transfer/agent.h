// The transfer agent: pools, peers, transports and one progress thread. One per process is usual, several are possible.
// Callers of any thread submit into a ring and take completions from a ring; nothing of the data path takes a lock that
// the progress thread holds, and the progress thread never calls JavaScript: it wakes by a callback that must only wake.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pool.h"
#include "transport.h"

namespace millrace::kv {

struct AgentOptions {
  std::string name;
  // Transports that may be used, by name; empty: all that are available.
  std::vector<std::string> transports;
  std::string listen_host = "127.0.0.1";  // of tcp
  uint32_t operations_max = 4096;
  // Called by the progress thread when the completion ring went from empty to not empty.
  std::function<void()> wake;
  // Spins so long before it sleeps.
  uint32_t spin_us = 20;
};

enum class EventKind : uint8_t { kCompletion, kNotification, kPeerUp, kPeerLost, kLeaseExpired };

struct Event {
  EventKind kind;
  Status status;
  uint64_t id;  // transfer or lease
  uint32_t peer;
  uint64_t bytes;
  uint64_t posted_ns, begun_ns, done_ns;
  const char* transport;
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
  std::vector<uint32_t> remote_generations;
  std::vector<uint8_t> notification;
  Integrity integrity = Integrity::kOff;
  Reader reader = Reader::kUnknown;
  uint8_t priority = 0;
  uint64_t deadline_ns = 0;
  // Empty: the cheapest of those that reach the peer; else the one of this name or kUnsupported.
  std::string transport;
};

class Agent {
 public:
  static Status create(const AgentOptions& options, std::unique_ptr<Agent>* out, std::string* error);
  // Completes everything with kClosed, waits for the bytes in flight, joins the thread.
  ~Agent();

  static std::vector<TransportInfo> probe();

  Status add_pool(std::unique_ptr<Pool> pool, uint32_t* id_out, std::string* error);
  // kBusy while anything is in flight there.
  Status remove_pool(uint32_t id);
  Pool* pool(uint32_t id);

  // Everything that a peer needs: version, uuid, epoch, pools with layouts, each transport's part. Any channel carries it.
  std::vector<uint8_t> metadata();
  // kMismatch with both values in `error`; known again under a new epoch: the old one is fenced and its transfers fail.
  Status add_peer(std::span<const uint8_t> metadata, uint32_t* peer_out, std::string* error);
  Status remove_peer(uint32_t peer);

  // Returns the transfer's id (> 0) or a Status below zero, and then nothing was begun; `error` says why.
  int64_t submit(TransferRequest request, std::string* error);
  void cancel(uint64_t id);
  Status notify(uint32_t peer, std::span<const uint8_t> bytes);

  // A lease on blocks here for a peer: pinned, renewed by the peer's heartbeats, ended by time, release or its death.
  int64_t lease(uint32_t pool, std::span<const uint32_t> blocks, uint32_t ttl_ms, std::string* error);
  Status release_lease(uint64_t id);

  // Takes up to `max` events that have happened. Any one thread at a time.
  uint32_t poll(uint32_t max, std::vector<Event>* out);
  // JSON for people and metrics.
  std::string stats();

 private:
  struct State;
  std::unique_ptr<State> state_;
  explicit Agent(std::unique_ptr<State> state);
};

}  // namespace millrace::kv
