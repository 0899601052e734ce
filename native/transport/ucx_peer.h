// The initiator's half of the ucx transport, on one link: operations, cut into parts of which each is one request. Progress
// thread only.
//
//     asked ─ data come ─ done                        a read, two-sided
//     asked ─ granted ─ data go ─ done                a write, two-sided
//     asked ─ granted ─ gets ─ end                    a read, direct
//     asked ─ granted ─ puts ─ flush ─ end            a write, direct
//     …                               end ─ done      either, where the bytes are compared
//
// UCX cannot take back what it was given: a direct part that is cancelled begins nothing more, and ends when what was begun
// is quiet. Two-sided bytes go through messages of ours, so reads end at once, and writes when the peer has said that it
// writes no more.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>

#include "copy.h"
#include "tcp_runs.h"
#include "ucx_link.h"

namespace millrace::kv {

class UcxPeer {
 public:
  UcxPeer(UcxShared& shared, UcxLink& link) : shared_(shared), link_(link) {}
  // The pools of the same life of the peer, as described now.
  void set_pools(std::vector<UcxAddress::PoolKey> pools) { described_ = std::move(pools); }
  // The peer has welcomed us.
  void begin() { is_ready_ = true; }
  Status submit(const Operation& operation);
  // Ends an operation for `cause`; its completion follows.
  void stop(uint64_t id, Status cause);
  Status notify(std::span<const uint8_t> bytes);
  // Ends all operations with `status`, those that are direct when they are quiet. None is taken any more.
  void end(Status status);
  // Goes on with what there is to do, until about this time. True when there was something.
  bool work(uint64_t until_ns);
  // Anything but kOk is a fault of the peer.
  Status frame(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);

  // A message of this request's data came damaged.
  void corrupt(uint64_t op);
  // Before the worker goes: nothing is in flight any more.
  void release_keys();

  bool is_quiet() const { return flights_.empty(); }
  // UCX moves bytes, or we do.
  bool is_moving() const;
  bool touches(const Pool& pool) const;
  // Whether an operation with this pool of the peer's would be direct.
  bool is_direct(uint32_t remote_pool);

 private:
  struct Flight {
    Operation operation;
    uint64_t sequence = 0;
    uint32_t blocks_per_part = 0;
    uint32_t asked = 0;
    uint32_t open = 0;
    uint64_t moved = 0;
    Status status = Status::kOk;
    bool is_direct = false;
  };
  enum class Phase : uint8_t { kAsked, kMoving, kFlushing, kEnding };
  struct Part {
    Flight* flight = nullptr;
    Phase phase = Phase::kAsked;
    uint32_t first = 0;
    uint32_t count = 0;
    uint64_t bytes = 0;
    bool is_cancel_sent = false;
    // Two-sided: bytes that have not come or gone, and messages of them so far.
    uint64_t left = 0;
    uint32_t frames = 0;
    TcpCursor cursor;
    // Direct: what UCX has begun and not finished, and how it failed.
    std::vector<Run> runs;
    RunCursor place{{}};
    uint32_t outstanding = 0;
    UcsStatus failure = kUcsOk;
    // What UCX gives back with each end.
    std::pair<const UcxApi*, Part*> token;
  };
  struct RemoteKey {
    void* rkey = nullptr;
    uint64_t address = 0;
    uint64_t bytes = 0;
    std::vector<uint8_t> packed;
    bool is_native = false;
  };

  static void finished(void* request, UcsStatus status, void* user_data);
  RemoteKey* key_of(uint32_t remote_pool);
  void feed();
  void ask(Flight& flight, uint32_t count);
  Status lower(const Part& part, std::string* error);
  Status granted(Part& part, std::string* why);
  Status data(Part& part, const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  bool send_data(Part& part, uint64_t op);
  bool move(Part& part, uint64_t op, uint64_t until_ns);
  bool begin_moves(Part& part, uint64_t until_ns);
  void flush(Part& part);
  bool finish_direct(Part& part, uint64_t op);
  void end_part(uint64_t op, Status status);
  void stop(Flight& flight, Status cause);
  void complete(Flight& flight);

  UcxShared& shared_;
  UcxLink& link_;
  bool is_ready_ = false;
  bool is_ended_ = false;
  uint64_t sequence_ = 0;
  uint64_t last_op_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Flight>> flights_;
  // Those with blocks that have not been asked for, by (priority, age).
  std::map<std::pair<uint8_t, uint64_t>, Flight*> waiting_;
  std::map<uint64_t, Part> parts_;
  std::set<uint32_t> told_layouts_;
  std::vector<UcxAddress::PoolKey> described_;
  std::map<uint32_t, RemoteKey> keys_;
  // Keys of pools that were described anew, until nothing can use them.
  std::vector<void*> old_keys_;
  std::vector<std::vector<uint8_t>> notes_;
  size_t note_bytes_ = 0;
};

}  // namespace millrace::kv
