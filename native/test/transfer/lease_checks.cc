// Leases between two agents: kept while the peer renews them, ended by time, by the peer, by its death; and blocks held for
// writes come back only when the peer is done.
#include "memory_transport.h"
#include "node.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = 16;
constexpr uint32_t kBlockBytes = 4096;

struct Sides {
  explicit Sides(const MemoryOptions& user_options = {})
      : owner(Node::make(memory_transport({}), kBlocks, kBlockBytes)),
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

// A transfer under a lease: it begins when the lease is granted, and a lease that is not there stops it.
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
  const Event refused = sides.user.completion(sides.user.agent->submit(request, &error));
  check(refused.status == Status::kNotAllowed, std::string("no lease: ") + status_name(refused.status));
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

void wait_until_free(BlockTable& table, uint32_t block) {
  const auto until = std::chrono::steady_clock::now() + kWaitMax;
  while (table.state(block) != BlockState::kFree) {
    table.settle();
    check(std::chrono::steady_clock::now() < until, "free in the end");
    std::this_thread::yield();
  }
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
  const auto until = std::chrono::steady_clock::now() + kWaitMax;
  while (sides.user.agent->stats().find("\"submitted\":1") == std::string::npos)
    check(std::chrono::steady_clock::now() < until, "begun");
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
  takes_back();
  peer_lost();
}

}  // namespace millrace::kv::test
