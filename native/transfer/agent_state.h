// What is inside an agent; agent.h is what others see. Three groups of members, by who may touch them: what callers and the
// progress thread share (atomics, rings, and small tables behind a lock that is held to copy a pointer), what only the
// progress thread touches, and leases behind a lock of their own. Files: agent.cc (callers' side of the data path),
// agent_progress.cc (the thread and the life of a transfer), agent_peers.cc (pools, peers, metadata), agent_leases.cc,
// agent_ports.cc.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "agent.h"
#include "measured_cost.h"
#include "port.h"
#include "rings.h"
#include "service.h"

namespace millrace::kv {

// Notifications of callers that are not sent yet, and bytes of peers' notifications that are not polled yet.
inline constexpr uint32_t kNotesMax = 4096;
// Messages that wait for one peer, those about leases among them.
inline constexpr size_t kOutboxMax = 2 * kNotesMax;
inline constexpr uint64_t kInboxBytesMax = 64ull << 20;
inline constexpr uint32_t kTransformsMax = 64;
// How long closing waits for cancelled operations before it ends the transports themselves.
inline constexpr uint64_t kCloseNs = 5'000'000'000;
inline constexpr size_t kKnownMax = 4 * kPeersMax;
inline constexpr uint32_t kLeasesMax = 1u << 16;

// First byte of every notification on a transport: who it is for.
enum class Envelope : uint8_t { kCaller = 0, kRenew = 1, kHeld = 2, kRevoke = 3, kDone = 4 };

// What those about leases name, as it lies in memory. Turns begin at 1; 0: the lease was not named yet.
struct LeaseUse {
  uint64_t lease;
  uint64_t turn;
};

// Counts a caller in for as long as it may push into a ring or take a lease.
class Inside {
 public:
  explicit Inside(std::atomic<uint32_t>& count) : count_(count) { count_.fetch_add(1, std::memory_order_seq_cst); }
  ~Inside() { count_.fetch_sub(1, std::memory_order_seq_cst); }
  Inside(const Inside&) = delete;

 private:
  std::atomic<uint32_t>& count_;
};

struct PoolEntry {
  std::unique_ptr<Pool> pool;
  std::atomic<uint32_t> users{0};
  std::atomic<bool> is_closing{false};

  // False when the pool is being removed. One of the two sides sees the other, as in BlockTable::enter.
  bool use() {
    users.fetch_add(1, std::memory_order_seq_cst);
    if (!is_closing.load(std::memory_order_seq_cst)) return true;
    unuse();
    return false;
  }
  void unuse() { users.fetch_sub(1, std::memory_order_seq_cst); }
};

struct Peer {
  uint32_t id = 0;
  Metadata metadata;
  // kOk: reachable; else what a submit answers.
  std::atomic<Status> state{Status::kOk};
  // Bit i: transports[i] reaches it.
  std::atomic<uint32_t> ways{0};
  std::mutex transforms_lock;
  struct TransformOf {
    uint32_t local_pool, remote_pool;
    Direction direction;
    Part part;
    std::shared_ptr<const Transform> transform;
  };
  std::vector<TransformOf> transforms;
  // By way and direction; the progress thread's.
  MeasuredCost costs[kTransportsMax][2];

  const PoolDescription* pool(uint32_t pool_id) const;
};

// Never changed once published.
struct Tables {
  std::map<uint32_t, std::shared_ptr<PoolEntry>> pools;
  std::map<uint32_t, std::shared_ptr<Peer>> peers;
  uint32_t peers_made = 0;
};

enum class Stage : uint8_t { kFree, kPosted, kParked, kWaiting, kBegun };

// One transfer. The submitter fills it and hands it over through the ring; after that it is the progress thread's, but
// for `word`, until its completion has been polled.
struct Record {
  // id * 2, plus 1 once it is to be cancelled.
  std::atomic<uint64_t> word{0};
  uint64_t lives = 0;
  TransferRequest request;
  std::shared_ptr<Peer> peer;
  std::shared_ptr<PoolEntry> pool;
  BlockHold hold;
  Operation operation;
  uint64_t posted_ns = 0, begun_ns = 0;
  Stage stage = Stage::kFree;
  // Of State::transports; -1 before one is chosen. `tried` have refused.
  int way = -1;
  uint32_t tried = 0;
  // No other transfer went this way when it began.
  bool is_alone = false;
  // Why it was cancelled, when it was.
  Status cause = Status::kOk;
  uint64_t sequence = 0;
  bool uses_lease = false;
  // Where its completion goes; null: to the events.
  Port* port = nullptr;
  uint32_t port_tag = 0;
};

struct Note {
  uint32_t peer = 0;
  std::vector<uint8_t> bytes;
};

// What callers put into the submission ring: a record's number, or a notification.
struct Submission {
  uint32_t slot = 0;
  std::unique_ptr<Note> note;
};

struct TransportCounters {
  std::atomic<uint64_t> submitted{0}, done{0}, failed{0}, bytes_read{0}, bytes_written{0}, refused_full{0};
  std::atomic<uint64_t> active_ns{0};
};

struct TransportState {
  std::string name;
  std::unique_ptr<Transport> transport;
  TransportCounters counters;
  // Transfers that wait for room, by (priority, age).
  std::set<std::pair<std::pair<uint8_t, uint64_t>, uint32_t>> waiting;
  int descriptor = -1;
  uint32_t begun = 0;
};

// A lease that we gave.
struct Lease {
  std::shared_ptr<PoolEntry> pool;
  std::vector<uint32_t> blocks, generations;
  // Of blocks held for writes; empty for pins.
  bool is_for_writes = false;
  BlockHold hold;
  uint64_t ttl_ns = 0, expires_ns = 0;
  uint32_t peer = 0;
  // The greatest that the peer has named the lease with.
  uint64_t turn = 0;
  // The owner was told.
  bool has_ended = false;
  bool is_revoke_sent = false;
  // The peer touches the blocks no more.
  bool is_quiet = false;
  // Released by the owner; waits for the peer's word only.
  bool is_released = false;
};

// A lease of a peer's that we use.
struct HeldLease {
  uint64_t turn = 0;
  bool is_explicit = false;
  bool is_granted = false;
  bool is_revoked = false;
  uint32_t transfers = 0;
};

struct Agent::State final : TransportHost, PortHost {
  // ---- set once
  AgentOptions options;
  Uuid uuid{};
  uint64_t epoch = 0;
  uint32_t operations_max = 0;
  std::vector<std::unique_ptr<TransportState>> transports;

  // ---- shared
  std::unique_ptr<Record[]> records;
  std::unique_ptr<SharedRing<uint32_t>> free_slots;
  std::unique_ptr<SharedRing<Submission>> submissions;
  std::unique_ptr<EventRing<Event>> events;
  std::atomic<uint32_t> notes_pending{0};
  std::atomic<uint64_t> inbox_bytes{0};
  std::atomic<bool> cancels_pending{false};
  std::atomic<bool> events_pending{false};
  std::atomic<bool> is_sleeping{false};
  std::atomic<bool> is_closed{false};
  // The thread has ended; what it left in events_waiting is for `poll`.
  std::atomic<bool> is_over{false};
  // Callers inside submit or notify, whom closing waits for.
  std::atomic<uint32_t> callers_inside{0};
  std::atomic<uint64_t> notes_sent{0}, notes_received{0}, notes_dropped{0}, peers_lost{0}, leases_ended{0};
  std::atomic<uint32_t> transfers_active{0};
  int wake_descriptor = -1;
  std::mutex tables_lock;
  std::shared_ptr<const Tables> tables_now = std::make_shared<Tables>();

  std::mutex commands_lock;
  std::condition_variable command_done;
  std::deque<std::function<void()>*> commands;
  bool takes_commands = true;
  std::atomic<bool> commands_pending{false};
  std::mutex close_lock;
  std::thread thread;

  std::mutex leases_lock;
  std::map<uint64_t, Lease> leases;
  uint64_t leases_made = 0;
  std::atomic<size_t> leases_count{0};

  // ---- the progress thread's
  int epoll = -1;
  bool is_stopping = false;
  std::deque<Event> events_waiting;
  std::vector<Completion> completions;
  std::set<std::pair<uint64_t, uint32_t>> deadlines;
  std::set<uint32_t> active;
  std::map<uint32_t, std::deque<std::vector<uint8_t>>> outbox;
  struct Loss {
    uint32_t peer;
    int way;
    std::string why;
  };
  std::vector<Loss> lost;
  int progressing = -1;
  uint64_t next_sequence = 1;
  uint32_t pools_made = 0;
  // Epoch and peer of agents that were added, for the fencing of earlier lives; at most kKnownMax.
  std::map<Uuid, std::pair<uint64_t, uint32_t>> known;
  std::map<std::pair<uint32_t, uint64_t>, HeldLease> held;
  uint64_t turns_made = 0;
  uint64_t next_lease_check_ns = 0;
  uint64_t next_heartbeat_ns = 0;
  std::vector<std::shared_ptr<Port>> ports;

  ~State() override;

  // ---- TransportHost
  Pool* pool(uint32_t id) override;
  void notified(uint32_t peer, std::span<const uint8_t> bytes) override;
  void peer_lost(uint32_t peer, const std::string& why) override;
  uint64_t now_ns() override;

  // ---- PortHost
  void wake_thread() override;
  Status map_pool(uint32_t id, std::unique_ptr<Pool>* out, std::string* error) override;

  // ---- any thread
  std::shared_ptr<const Tables> tables();
  void kick();
  // Runs on the progress thread; false when the agent is closed.
  bool command(std::function<void()> run);
  Status check(const TransferRequest& request, const std::shared_ptr<Peer>& peer, const std::shared_ptr<PoolEntry>& local,
               std::shared_ptr<const Transform>* transform, std::string* error);
  Status transform_of(const TransferRequest& request, Peer& peer, const Pool& local, const PoolDescription& remote,
                      std::shared_ptr<const Transform>* out, std::string* error);
  // Checks a transfer and gives it a record, with its blocks held; what is left is to let the progress thread begin it.
  Status post(TransferRequest request, uint32_t* slot_out, std::string* error);

  // ---- the progress thread: agent_progress.cc and agent_events.cc
  void run();
  bool step();
  void sleep();
  bool take_submissions();
  void take_cancels();
  void begin(uint32_t slot);
  void choose(uint32_t slot);
  void submit_waiting(TransportState& way);
  void forget_waiting(uint32_t slot);
  void stop_transfer(uint32_t slot, Status cause);
  void expire(uint64_t now);
  bool progress(int way);
  void complete(uint32_t slot, Status status, uint64_t bytes);
  void publish(Event event);
  void flush_events();
  void take_lost();
  void lose(uint32_t peer, int way, const std::string& why);
  void fail_peer(uint32_t peer, Status cause);
  // No transport reaches the peer any more, from the next turn on.
  void cut_off(uint32_t peer, const std::string& why);
  void send(uint32_t peer, std::vector<uint8_t> bytes);
  bool flush_outbox();
  void finish();

  // ---- the progress thread: agent_ports.cc
  bool take_ports();
  bool serve_port(Port& port);
  void end_port(size_t index);
  // Ports say from here on that they must be kicked; false when one has something to do before.
  bool ports_may_sleep();
  void ports_awake();

  // ---- the progress thread: agent_peers.cc
  void publish_tables(const std::function<void(Tables&)>& change);
  Status add_pool_now(std::unique_ptr<Pool>& pool, uint32_t* id_out, std::string* error);
  Status remove_pool_now(uint32_t id);
  std::vector<uint8_t> metadata_now();
  void forget_oldest(const Tables& now);
  Status add_peer_now(const Metadata& metadata, uint32_t* peer_out, std::string* error);
  Status remove_peer_now(uint32_t peer, Status cause);

  // ---- the progress thread: agent_leases.cc
  void control(uint32_t peer, Envelope kind, std::span<const uint8_t> body);
  void tend_leases(uint64_t now);
  void leases_of_lost(uint32_t peer);
  HeldLease& hold(uint32_t peer, uint64_t lease);
  // kOk: the transfer may go on now; kBusy: the owner has not answered yet; kNotAllowed.
  Status use_lease(uint32_t slot);
  void unuse_lease(const Record& record);
  void end_held(uint32_t peer, uint64_t lease);
  void from_owner(uint32_t peer, Envelope kind, const LeaseUse& use);
  void from_user(uint32_t peer, Envelope kind, const std::vector<LeaseUse>& uses);
  void heartbeat(uint64_t now);
  void end_lease(uint64_t id, Lease& lease, Status why);
  void tell_end(uint64_t id, Lease& lease, Status why);
  void erase_released();
};

}  // namespace millrace::kv
