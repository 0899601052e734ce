// Leases between two agents: kept while the peer renews them, ended by time, by the peer, by its death; and blocks held for
// writes come back only when the peer is done.
#include "memory_transport.h"
#include "node.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = 16;
constexpr uint32_t kBlockBytes = 4096;

// Speaks on the memory transport, and is no agent.
class Stranger final : public TransportHost {
 public:
  Stranger() {
    std::string error;
    metadata_.name = "stranger";
    metadata_.uuid = {7};
    metadata_.epoch = 1;
    transport_ = memory_transport({}).make({this, metadata_.name, metadata_.uuid, metadata_.epoch, ""}, &error);
    check(transport_ != nullptr, error);
    metadata_.transports.push_back({"memory", {}});
    transport_->describe(&metadata_.transports[0].described);
  }
  uint32_t meets(Node& node) {
    std::string error;
    Metadata theirs;
    check(Metadata::decode(node.agent->metadata(), &theirs, &error) == Status::kOk, error);
    check(transport_->add_peer(1, theirs.transports[0].described, &error) == Status::kOk, error);
    uint32_t peer = 0;
    check(node.agent->add_peer(metadata_.encode(), &peer, &error) == Status::kOk, error);
    return peer;
  }
  void says(const std::vector<uint8_t>& bytes) { check(transport_->notify(1, bytes) == Status::kOk, "said"); }

  Pool* pool(uint32_t) override { return nullptr; }
  void notified(uint32_t, std::span<const uint8_t>) override {}
  void peer_lost(uint32_t, const std::string&) override {}
  uint64_t now_ns() override { return 0; }

 private:
  Metadata metadata_;
  std::unique_ptr<Transport> transport_;
};

struct Sides {
  explicit Sides(const MemoryOptions& user_options = {}, const MemoryOptions& owner_options = {})
      : owner(Node::make(memory_transport(owner_options), kBlocks, kBlockBytes)),
        user(Node::make(memory_transport(user_options), kBlocks, kBlockBytes)) {
    user_peer = user.meet(owner);
    owner_peer = owner.meet(user);
  }
  Event ended(int64_t lease) {
    return owner.wait("the end of a lease", [&](const Event& event) {
      return event.kind == EventKind::kLeaseExpired && event.id == static_cast<uint64_t>(lease);
    });
  }
  Node owner, user;
  uint32_t user_peer = 0, owner_peer = 0;
};

void pins(Sides& sides) {
  std::string error;
  Agent& owner = *sides.owner.agent;
  BlockTable& table = *sides.owner.pool->table();
  uint32_t generation;
  const uint32_t block = sides.owner.take(1, true, &generation);
  // Nobody renews it.
  int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 1, 0, &error);
  check(lease > 0, error);
  check(table.release(block, generation) == Status::kBusy, "pinned");
  check(owner.remove_pool(sides.owner.pool_id) == Status::kBusy, "leased");
  check(sides.ended(lease).status == Status::kDeadline, "ended by time");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "released");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kNotFound, "once");
  // Renewed by the peer for longer than its time, then dropped.
  lease = owner.lease(sides.owner.pool_id, {&block, 1}, 3 * kHeartbeatMs, 0, &error);
  const uint64_t from = owner.now_ns();
  check(sides.user.agent->hold_lease(sides.user_peer, static_cast<uint64_t>(lease)) == Status::kOk, "held");
  while (owner.now_ns() < from + uint64_t{4} * kHeartbeatMs * 1'000'000) {
    std::vector<Event> events;
    owner.poll(16, &events);
    for (const Event& event : events) check(event.kind != EventKind::kLeaseExpired, "renewed by heartbeats");
    std::this_thread::yield();
  }
  check(sides.user.agent->drop_lease(sides.user_peer, static_cast<uint64_t>(lease)) == Status::kOk, "dropped");
  const Event done = sides.ended(lease);
  check(done.status == Status::kOk && done.peer == sides.owner_peer, "ended by the peer");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "released");
  check(table.release(block, generation) == Status::kOk, "not pinned any more");
}

// A transfer under a lease: it begins when the lease is granted, and one that is not there any more, or never was, stops it.
void transfers(Sides& sides) {
  std::string error;
  Agent& owner = *sides.owner.agent;
  uint32_t generation, local_generation;
  const uint32_t block = sides.owner.take(0, false, &generation);
  const uint32_t local = sides.user.take(33, true, &local_generation);
  check(owner.lease(sides.owner.pool_id, {&block, 1}, 1000, 0, &error) == static_cast<int64_t>(Status::kInvalid),
        "writes need a peer");
  const int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 60'000, sides.owner_peer, &error);
  check(lease > 0, error);
  TransferRequest request;
  request.peer = sides.user_peer;
  request.direction = Direction::kWrite;
  request.local_pool = sides.user.pool_id;
  request.remote_pool = sides.owner.pool_id;
  request.local_blocks = {local};
  request.remote_blocks = {block};
  request.remote_generations = {generation};
  request.lease = static_cast<uint64_t>(lease);
  check(sides.user.completion(sides.user.agent->submit(request, &error)).status == Status::kOk, "written");
  check(holds(*sides.owner.pool, block, 33), "the bytes are there");
  check(sides.ended(lease).status == Status::kOk, "the last transfer ends it");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "released");
  for (const uint64_t none : {static_cast<uint64_t>(lease), static_cast<uint64_t>(lease) + 1000}) {
    request.lease = none;
    const Event refused = sides.user.completion(sides.user.agent->submit(request, &error));
    check(refused.status == Status::kNotAllowed, std::string("no lease: ") + status_name(refused.status));
  }
}

TransferRequest write_of(const Sides& sides, uint32_t local, uint32_t block, uint32_t generation) {
  TransferRequest request;
  request.peer = sides.user_peer;
  request.direction = Direction::kWrite;
  request.local_pool = sides.user.pool_id;
  request.remote_pool = sides.owner.pool_id;
  request.local_blocks = {local};
  request.remote_blocks = {block};
  request.remote_generations = {generation};
  return request;
}

// The progress thread has been through all that had come before.
void turn_around(Agent& agent) {
  for (int i = 0; i < 4; i++) agent.metadata();
}

void wait_for(const std::string& what, const std::function<bool()>& holds) {
  const auto until = std::chrono::steady_clock::now() + kWaitMax;
  while (!holds()) {
    check(std::chrono::steady_clock::now() < until, what);
    std::this_thread::yield();
  }
}

// A grant that answers an earlier use of a lease comes when the lease has ended, and is named again. It grants nothing.
void late_grant() {
  MemoryOptions slow;
  slow.notes_allowed = std::make_shared<std::atomic<uint32_t>>(0);
  Sides sides({}, slow);
  std::string error;
  Agent& owner = *sides.owner.agent;
  Agent& user = *sides.user.agent;
  uint32_t generation, local_generation;
  const uint32_t block = sides.owner.take(1, true, &generation);
  const uint32_t local = sides.user.take(2, false, &local_generation);
  const int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 60'000, sides.owner_peer, &error);
  check(lease > 0, error);
  check(user.hold_lease(sides.user_peer, static_cast<uint64_t>(lease)) == Status::kOk, "held");
  check(user.drop_lease(sides.user_peer, static_cast<uint64_t>(lease)) == Status::kOk, "dropped");
  check(sides.ended(lease).status == Status::kOk, "ended by the peer, whom the grant has not reached");
  TransferRequest request;
  request.peer = sides.user_peer;
  request.local_pool = sides.user.pool_id;
  request.remote_pool = sides.owner.pool_id;
  request.local_blocks = {local};
  request.remote_blocks = {block};
  request.remote_generations = {generation};
  request.lease = static_cast<uint64_t>(lease);
  const int64_t id = user.submit(request, &error);
  check(id > 0, error);
  turn_around(user);
  slow.notes_allowed->store(1);
  wait_for("the grant has gone", [&] { return owner.stats().find("\"notesSent\":1,") != std::string::npos; });
  turn_around(user);
  check(user.stats().find("\"submitted\":0,") != std::string::npos, "a late grant begins nothing");
  slow.notes_allowed->store(1000);
  check(sides.user.completion(id).status == Status::kNotAllowed, "its own answer does");
  check(holds(*sides.user.pool, local, 2), "no byte");
}

// A lease that is revoked while a transfer under it is being stopped: what is posted then ends too.
void named_while_revoked() {
  MemoryOptions slow;
  slow.faults.drop = 10'000;
  slow.faults.linger = 10'000;
  Sides sides(slow);
  std::string error;
  Agent& owner = *sides.owner.agent;
  uint32_t generation, local_generation;
  const uint32_t block = sides.owner.take(0, false, &generation);
  const uint32_t local = sides.user.take(33, true, &local_generation);
  const int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 60'000, sides.owner_peer, &error);
  check(lease > 0, error);
  TransferRequest request = write_of(sides, local, block, generation);
  request.lease = static_cast<uint64_t>(lease);
  std::vector<int64_t> ids{sides.user.agent->submit(request, &error)};
  wait_for("begun", [&] { return sides.user.agent->stats().find("\"submitted\":1") != std::string::npos; });
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "taken back");
  for (int i = 0; i < 200; i++) ids.push_back(sides.user.agent->submit(request, &error));
  for (const int64_t id : ids)
    check(id > 0 && sides.user.completion(id).status == Status::kNotAllowed, "each is stopped or refused");
}

// Words about leases that no agent says: whoever says them is cut off.
void hostile() {
  for (const std::vector<uint8_t>& words : std::vector<std::vector<uint8_t>>{
           {1}, {2, 0}, std::vector<uint8_t>(16, 1), std::vector<uint8_t>(18, 3), {5}, {255, 1, 2},
           std::vector<uint8_t>(1 + 16 * 2049, 4)}) {
    Node node = Node::make(memory_transport({}), kBlocks, kBlockBytes);
    Stranger stranger;
    const uint32_t peer = stranger.meets(node);
    stranger.says(words);
    const Event lost = node.wait("the loss of the peer", [&](const Event& e) { return e.kind == EventKind::kPeerLost; });
    check(lost.peer == peer, "cut off");
  }
}

void wait_until_free(BlockTable& table, uint32_t block) {
  wait_for("free in the end", [&] {
    table.settle();
    return table.state(block) == BlockState::kFree;
  });
}

// The owner takes back a block that the peer is writing to: it stays in quarantine until the peer has stopped.
void takes_back() {
  MemoryOptions stuck;
  stuck.faults.drop = 10'000;
  Sides sides(stuck);
  std::string error;
  Agent& owner = *sides.owner.agent;
  BlockTable& table = *sides.owner.pool->table();
  uint32_t generation, local_generation;
  const uint32_t block = sides.owner.take(0, false, &generation);
  const uint32_t local = sides.user.take(33, true, &local_generation);
  const int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 60'000, sides.owner_peer, &error);
  check(lease > 0, error);
  TransferRequest request = write_of(sides, local, block, generation);
  request.lease = static_cast<uint64_t>(lease);
  const int64_t id = sides.user.agent->submit(request, &error);
  check(id > 0, error);
  wait_for("begun", [&] { return sides.user.agent->stats().find("\"submitted\":1") != std::string::npos; });
  check(table.release(block, generation) == Status::kOk, "released");
  check(table.state(block) == BlockState::kQuarantine, "but held for the peer");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "taken back");
  check(sides.user.completion(id).status == Status::kNotAllowed, "stopped");
  wait_until_free(table, block);
}

// The peer is lost while it holds a lease for writes.
void peer_lost() {
  MemoryOptions cutting;
  cutting.faults.cut = 10'000;
  Sides sides(cutting);
  std::string error;
  Agent& owner = *sides.owner.agent;
  BlockTable& table = *sides.owner.pool->table();
  uint32_t generation, other_generation, local_generation;
  const uint32_t block = sides.owner.take(0, false, &generation);
  const uint32_t other = sides.owner.take(0, false, &other_generation);
  const uint32_t local = sides.user.take(33, true, &local_generation);
  const int64_t lease = owner.lease(sides.owner.pool_id, {&block, 1}, 60'000, sides.owner_peer, &error);
  check(lease > 0, error);
  check(table.release(block, generation) == Status::kOk, "released");
  check(table.state(block) == BlockState::kQuarantine, "but held for the peer");
  const int64_t id = sides.user.agent->submit(write_of(sides, local, other, other_generation), &error);
  check(sides.user.completion(id).status == Status::kPeerLost, "cut off");
  check(sides.ended(lease).status == Status::kPeerLost, "ended by the loss");
  check(owner.release_lease(static_cast<uint64_t>(lease)) == Status::kOk, "let go");
  wait_until_free(table, block);
}

}  // namespace

void lease_checks() {
  Sides sides;
  pins(sides);
  transfers(sides);
  late_grant();
  named_while_revoked();
  hostile();
  takes_back();
  peer_lost();
}

}  // namespace millrace::kv::test
