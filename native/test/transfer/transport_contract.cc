// The promises of transport.h, on real agents: each transport runs this suite (contract_suite with its own maker).
#include <atomic>

#include "node.h"
#include "transport_contract.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = kContractBlocks;
constexpr uint32_t kBlockBytes = kContractBlockBytes;

struct Pair {
  explicit Pair(const ContractTransport& transport)
      : a(transport.here(transport.plain())), b(transport.there(transport.plain())) {
    to_b = a.meet(b);
    to_a = b.meet(a);
  }
  Node a, b;
  uint32_t to_b = 0, to_a = 0;
};

TransferRequest request_of(const Pair& pair, Direction direction, std::vector<uint32_t> local,
                           std::vector<uint32_t> remote, std::vector<uint32_t> remote_generations) {
  TransferRequest request;
  request.peer = pair.to_b;
  request.direction = direction;
  request.local_pool = pair.a.pool_id;
  request.remote_pool = pair.b.pool_id;
  request.local_blocks = std::move(local);
  request.remote_blocks = std::move(remote);
  request.remote_generations = std::move(remote_generations);
  return request;
}

// Reads and writes of several blocks; the peer hears of it after the bytes, and blocks beside them keep theirs.
void moves_bytes(const ContractTransport& transport) {
  Pair pair(transport);
  std::string error;
  for (const Integrity integrity : {Integrity::kOff, Integrity::kSample, Integrity::kFull}) {
    for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
      const bool reads = direction == Direction::kRead;
      std::vector<uint32_t> local, remote, generations;
      std::vector<std::pair<uint32_t, uint32_t>> locals;
      const uint64_t tag = (static_cast<uint64_t>(integrity) * 2 + reads + 1) << 32;
      for (uint64_t i = 0; i < 5; i++) {
        uint32_t generation;
        local.push_back(pair.a.take(reads ? 0 : tag + (i << 20), !reads, &generation));
        locals.push_back({local.back(), generation});
        remote.push_back(pair.b.take(reads ? tag + (i << 20) : 0, reads, &generation));
        generations.push_back(generation);
      }
      for (uint32_t block = 0; block < kBlocks; block++) {
        if (pair.a.pool->table()->state(block) == BlockState::kFree) fill(*pair.a.pool, block, 77);
        if (pair.b.pool->table()->state(block) == BlockState::kFree) fill(*pair.b.pool, block, 88);
      }
      TransferRequest request = request_of(pair, direction, local, remote, generations);
      request.integrity = integrity;
      request.notification = {1, 2, static_cast<uint8_t>(tag >> 32)};
      const int64_t id = pair.a.agent->submit(request, &error);
      check(id > 0, error);
      const Event told = pair.b.wait("a notification", [](const Event& e) { return e.kind == EventKind::kNotification; });
      check(told.notification == request.notification && told.peer == pair.to_a, "the notification arrives as it was");
      for (uint64_t i = 0; i < 5; i++)
        check(reads || holds(*pair.b.pool, remote[i], tag + (i << 20)), "bytes are there before their notification");
      const Event done = pair.a.completion(id);
      check(done.status == Status::kOk && done.bytes == 5 * kBlockBytes, "completed with all its bytes");
      check(done.posted_ns <= done.begun_ns && done.begun_ns <= done.done_ns, "times are in order");
      for (uint64_t i = 0; i < 5; i++)
        check(holds(*pair.a.pool, local[i], tag + (i << 20)) && holds(*pair.b.pool, remote[i], tag + (i << 20)), "same bytes");
      for (uint32_t block = 0; block < kBlocks; block++) {
        const bool a_free = pair.a.pool->table()->state(block) == BlockState::kFree;
        const bool b_free = pair.b.pool->table()->state(block) == BlockState::kFree;
        check(!a_free || holds(*pair.a.pool, block, 77), "no other byte here");
        check(!b_free || holds(*pair.b.pool, block, 88), "no other byte there");
      }
      for (uint64_t i = 0; i < 5; i++) {
        check(pair.a.pool->table()->release(locals[i].first, locals[i].second) == Status::kOk, "released here");
        check(pair.b.pool->table()->release(remote[i], generations[i]) == Status::kOk, "released there");
      }
    }
  }
  pair.b.pool->table()->settle();
  check(pair.a.pool->table()->stats().free == kBlocks, "nothing here is counted in any more");
}

// What is refused begins nothing, and what a peer may not touch is not touched.
void refuses(const ContractTransport& transport) {
  Pair pair(transport);
  std::string error;
  uint32_t target_generation, ready_generation, reserved_generation;
  const uint32_t target = pair.a.take(5, false, &target_generation);
  const uint32_t ready = pair.b.take(6, true, &ready_generation);
  const uint32_t reserved = pair.b.take(7, false, &reserved_generation);
  const auto refused = [&](const TransferRequest& request, Status status, const char* what) {
    check(pair.a.agent->submit(request, &error) == static_cast<int64_t>(status), std::string(what) + ": " + error);
    check(!error.empty(), "says why");
  };
  const TransferRequest good = request_of(pair, Direction::kRead, {target}, {ready}, {ready_generation});
  TransferRequest bad = good;
  bad.peer = 99;
  refused(bad, Status::kNotFound, "unknown peer");
  bad = good, bad.remote_pool = 99;
  refused(bad, Status::kNotFound, "unknown pool");
  bad = good, bad.local_blocks = {target, target};
  refused(bad, Status::kInvalid, "lists of different length");
  bad = good, bad.remote_blocks = {kBlocks};
  refused(bad, Status::kInvalid, "block outside");
  bad = good, bad.remote_generations = {};
  refused(bad, Status::kInvalid, "no generations");
  bad = good, bad.transport = "pigeon";
  refused(bad, Status::kUnsupported, "unknown transport");
  bad = good, bad.part.layers = 3;
  refused(bad, Status::kInvalid, "part of blocks without parts");
  bad = good, bad.local_generations = {target_generation + 1};
  refused(bad, Status::kStale, "another generation here");
  const auto fails = [&](const TransferRequest& request, Status status, const char* what) {
    const int64_t id = pair.a.agent->submit(request, &error);
    check(id > 0, error);
    const Event done = pair.a.completion(id);
    check(done.status == status, std::string(what) + ": " + status_name(done.status));
    check(holds(*pair.a.pool, target, 5) && holds(*pair.b.pool, ready, 6) && holds(*pair.b.pool, reserved, 7), "no byte");
  };
  bad = good, bad.remote_generations = {ready_generation + 1};
  fails(bad, Status::kStale, "another generation there");
  bad = good, bad.direction = Direction::kWrite;
  fails(bad, Status::kNotAllowed, "a write into a ready block");
  bad = good, bad.remote_blocks = {reserved}, bad.remote_generations = {reserved_generation};
  fails(bad, Status::kNotAllowed, "a read of a reserved block");
  bad = good, bad.deadline_ns = 1;
  fails(bad, Status::kDeadline, "a deadline that is over");
  check(pair.a.completion(pair.a.agent->submit(good, &error)).status == Status::kOk, "the good one still works");
}

// Operations that stand still end by cancelling, by deadline, with the peer's removal and with its death; until then
// their blocks and pools stay.
void ends_early(const ContractTransport& transport) {
  if (!transport.stuck) return;
  std::string error;
  for (int how = 0; how < 5; how++) {
    Node a = transport.here(transport.stuck());
    Node b = transport.there(transport.plain());
    const uint32_t to_b = a.meet(b);
    b.meet(a);
    uint32_t local_generation, remote_generation;
    const uint32_t local = a.take(1, false, &local_generation);
    const uint32_t remote = b.take(2, true, &remote_generation);
    TransferRequest request;
    request.peer = to_b;
    request.local_pool = a.pool_id;
    request.remote_pool = b.pool_id;
    request.local_blocks = {local};
    request.remote_blocks = {remote};
    request.remote_generations = {remote_generation};
    if (how == 1) request.deadline_ns = a.agent->now_ns() + 2'000'000;
    const int64_t id = a.agent->submit(request, &error);
    check(id > 0, error);
    check(a.agent->remove_pool(a.pool_id) == Status::kBusy, "the pool is in use");
    if (how != 1) {
      check(a.pool->table()->release(local, local_generation) == Status::kOk, "released");
      check(a.pool->table()->state(local) == BlockState::kQuarantine, "and kept back");
    }
    if (how == 0) a.agent->cancel(id);
    if (how == 2) check(a.agent->remove_peer(to_b) == Status::kOk, "removed");
    if (how == 3) b.agent.reset();
    if (how == 4) a.agent->close();
    const Status expected[] = {Status::kCancelled, Status::kDeadline, Status::kCancelled, Status::kPeerLost, Status::kClosed};
    const Event done = a.completion(id);
    check(done.status == expected[how], std::string("ended as ") + status_name(done.status));
    a.pool->table()->settle();
    check(how == 1 || a.pool->table()->state(local) == BlockState::kFree, "free after its completion");
    if (how == 3) a.wait("the loss of the peer", [&](const Event& e) { return e.kind == EventKind::kPeerLost && e.peer == to_b; });
    if (how == 3) check(a.agent->submit(request, &error) == static_cast<int64_t>(Status::kPeerLost), "lost");
    if (how == 2) check(a.agent->submit(request, &error) == static_cast<int64_t>(Status::kStale), "removed");
    if (how == 4) check(a.agent->submit(request, &error) == static_cast<int64_t>(Status::kClosed), "closed");
    if (how < 4) check(a.agent->remove_pool(a.pool_id) == Status::kOk, "the pool can go");
    check(a.agent->poll(64, &a.heard) == 0 || a.heard.back().kind != EventKind::kCompletion, "once");
  }
}

// A peer that begins another life: the old one's number is stale, the new one works.
void fences_epochs(const ContractTransport& transport) {
  const Uuid uuid = {1, 2, 3};
  Node a = transport.here(transport.plain());
  Node b = transport.there(transport.plain(), uuid);
  std::string error;
  const uint32_t old_peer = a.meet(b);
  check(a.meet(b) == old_peer, "the same life is the same peer");
  const std::vector<uint8_t> old_metadata = b.agent->metadata();
  b = transport.there(transport.plain(), uuid);
  const uint32_t new_peer = a.meet(b);
  check(new_peer != old_peer, "another life is another peer");
  uint32_t ignored;
  check(a.agent->add_peer(old_metadata, &ignored, &error) == Status::kStale, "the old life is over");
  check(a.agent->notify(old_peer, {}) == Status::kStale, "its number too");
  b.meet(a);
  const uint8_t word[] = {9};
  check(a.agent->notify(new_peer, word) == Status::kOk, "the new one hears");
  b.wait("a notification", [](const Event& e) { return e.kind == EventKind::kNotification && e.notification[0] == 9; });
}

}  // namespace

void contract_suite(const ContractTransport& transport) {
  moves_bytes(transport);
  refuses(transport);
  ends_early(transport);
  fences_epochs(transport);
}

}  // namespace millrace::kv::test
