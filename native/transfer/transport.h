// The contract of a transport (K3): what moves bytes between the pools of two agents. Implemented in native/transport/,
// one file each; chosen by the agent by what each says it can do and has cost.
//
// Threads: everything is called by the agent's one progress thread, but `probe`. Nothing here blocks: work is done in
// slices inside `progress`, or by threads of the transport's own that it joins in its destructor.
//
// Promises that every transport keeps, and that test/native/transport_contract runs on each:
//  - submit is all or nothing: a status below zero means that nothing was begun.
//  - each submitted operation completes exactly once, in `progress`, whatever happens: done, failed, cancelled.
//  - after its completion, and not before, no byte of its memory is read or written any more: by this process, by the
//    peer or by a device. Cancelling makes completion come sooner, never earlier than that.
//  - a peer that dies completes all its operations with kPeerLost inside kPeerLossMs.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "layout.h"
#include "plan.h"
#include "status.h"

namespace millrace::kv {

class Pool;

enum class MemoryKind : uint8_t { kHost = 0, kDevice = 1 };
enum class Direction : uint8_t { kRead = 0, kWrite = 1 };  // seen from who submits: peer to here, here to peer
enum class Integrity : uint8_t { kOff = 0, kSample = 1, kFull = 2 };
// What the caller knows of who reads next: picks plain or streaming stores.
enum class Reader : uint8_t { kUnknown = 0, kSoon = 1, kLater = 2 };

inline constexpr uint32_t kPeerLossMs = 1500;
inline constexpr uint32_t kHeartbeatMs = 250;
inline constexpr uint32_t kNotificationBytesMax = 64 * 1024;
// Integrity::kSample checks one block in so many.
inline constexpr uint32_t kSampleBlocks = 16;

struct TransportInfo {
  const char* name;  // memory, shm, cma, tcp, ucx, cuda
  bool available;
  // Why not, or what limits it (page size, missing library), in one sentence for people.
  std::string reason;
  uint32_t memory_kinds;  // bits 1 << MemoryKind; of either side
  bool same_host_only;
  bool one_sided;  // works while the peer's progress thread stands still
  // An agent uses it only where its options name it: the others do here all that it does, and better.
  bool only_by_name = false;
};

// What a transport says of itself counts until the agent has measured the way to a peer: see measured_cost.h.
struct Cost {
  uint64_t latency_ns;
  uint64_t bytes_per_second;
};

// One operation as the agent hands it over. The vectors stay where they are until the completion.
struct Operation {
  uint64_t id = 0;
  Direction direction = Direction::kRead;
  Integrity integrity = Integrity::kOff;
  Reader reader = Reader::kUnknown;
  uint8_t priority = 0;  // 0 first
  Pool* local = nullptr;
  uint32_t remote_pool = 0;
  // Of the peer's pool, as its metadata says.
  MemoryKind remote_kind = MemoryKind::kHost;
  std::shared_ptr<const Transform> transform;
  Part part;
  // As the peer knows them and as we do; same length.
  std::span<const uint32_t> remote_blocks;
  std::span<const uint32_t> local_blocks;
  // Generations of the remote blocks that are meant; empty where the pool keeps none. Checked before, and for reads after.
  std::span<const uint32_t> remote_generations;
  // Told to the peer once all bytes are in place (writes) or taken (reads).
  std::span<const uint8_t> notification;
  uint64_t deadline_ns = 0;  // of CLOCK_MONOTONIC; 0: none
};

struct Completion {
  uint64_t id;
  Status status;
  uint64_t bytes;
};

struct Notification {
  uint32_t peer;
  std::vector<uint8_t> bytes;
};

// What the agent is to a transport.
class TransportHost {
 public:
  virtual ~TransportHost() = default;
  virtual Pool* pool(uint32_t id) = 0;
  virtual void notified(uint32_t peer, std::span<const uint8_t> bytes) = 0;
  // The peer is gone for this transport; its operations have been completed, or are in the same call of `progress`. It is
  // added again before it is used again.
  virtual void peer_lost(uint32_t peer, const std::string& why) = 0;
  virtual uint64_t now_ns() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual const TransportInfo& info() const = 0;
  // Makes a pool reachable; called for every pool of the agent before peers hear of it. kUnsupported: this pool goes
  // other ways.
  virtual Status add_pool(Pool* pool) = 0;
  // kBusy while operations, ours or a peer's, touch it.
  virtual Status remove_pool(Pool* pool) = 0;
  // What a peer needs to reach us and our pools this way; part of the agent's metadata.
  virtual void describe(std::vector<uint8_t>* out) = 0;
  // The transport's part of a peer's metadata; again, with the same number, when the peer has other pools or was lost: what
  // is in flight goes on. kUnsupported when that peer cannot be reached this way, with the reason.
  virtual Status add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) = 0;
  // Completes what is in flight with kCancelled, and then touches the peer's memory no more. A peer that is not known is
  // none of its business.
  virtual void remove_peer(uint32_t peer) = 0;
  virtual Cost cost(uint32_t peer, const Operation& operation, uint64_t bytes) = 0;
  virtual Status submit(uint32_t peer, const Operation& operation) = 0;
  virtual void cancel(uint64_t id) = 0;
  virtual Status notify(uint32_t peer, std::span<const uint8_t> bytes) = 0;
  // Does a slice of work, at most about 200 µs; appends completions. True when there was any.
  virtual bool progress(std::vector<Completion>* completions) = 0;
  // A descriptor that becomes readable when `progress` has work again; -1: must be polled.
  virtual int wait_descriptor() = 0;
};

// What an agent gives a transport when it makes it.
struct TransportSetup {
  TransportHost* host;
  std::string agent_name;
  std::array<uint8_t, 16> uuid;
  uint64_t epoch;
  std::string listen_host;
};

// How an agent comes by a transport. `make` returns null, with the reason, where the transport cannot be had after all.
struct TransportMaker {
  TransportInfo (*probe)();
  std::function<std::unique_ptr<Transport>(const TransportSetup& setup, std::string* error)> make;
};

}  // namespace millrace::kv
