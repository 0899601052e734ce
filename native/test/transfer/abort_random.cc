// Random aborts and deaths, as proof of the quarantine: agents move blocks between each other while operations are cancelled,
// run out of time, break off and are corrupted, links are cut, agents die and come back, and owners release blocks under
// operations and fill them anew, take leases back, and are named leases that have ended. Every block has contents that nobody else's has, so a byte that was written or read too
// late is seen. One owner thread (this one), a progress thread for each agent.
#include <algorithm>
#include <map>

#include "memory_transport.h"
#include "node.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kNodes = 3;
constexpr uint32_t kBlocks = 64;
constexpr uint32_t kBlockBytes = 1024;
constexpr size_t kFlightsMax = 48;

struct Held {
  uint32_t block, generation;
  uint64_t tag;
};

struct Flight {
  uint32_t from, to;
  bool reads;
  Integrity integrity;
  std::vector<Held> sources, targets;
  bool sources_released = false, targets_released = false;
  // On the targets, by their owner; 0: none, or taken back.
  int64_t lease = 0;
  // The lease had ended before.
  bool is_spent = false;
};

// A lease of `owner` that `user` has used to its end.
struct Spent {
  uint32_t owner, user;
  int64_t lease;
};

class Fuzz {
 public:
  Fuzz(std::mt19937& random, uint32_t operations) : random_(random), operations_(operations) {
    faults_ = {.seed = random(), .delay = 1500, .drop = 300, .partial = 300, .reorder = 1500, .corrupt = 300, .linger = 3000, .cut = 30, .late = 3000};
    counts_ = std::make_shared<MemoryFaultCounts>();
    for (uint32_t i = 0; i < kNodes; i++) make_node(i);
    for (uint32_t i = 0; i < kNodes; i++) meet_all(i);
  }

  void run() {
    while (submitted_ < operations_) {
      if (flights_.size() < kFlightsMax) begin();
      const uint32_t what = random_() % 64;
      if (what < 6 || flights_.size() == kFlightsMax) cancel_one();
      if (what >= 6 && what < 14) release_one();
      if (what >= 14 && what < 30) look_at_one();
      if (submitted_ >= next_death_) die();
      for (uint32_t i = 0; i < kNodes; i++) listen(i);
    }
    for (auto& [key, flight] : flights_) nodes_[key.first].agent->cancel(static_cast<uint64_t>(key.second));
    const auto until = std::chrono::steady_clock::now() + kWaitMax;
    while (!flights_.empty()) {
      for (uint32_t i = 0; i < kNodes; i++) listen(i);
      check(std::chrono::steady_clock::now() < until, "every transfer completes");
    }
    report();
  }

 private:
  using Key = std::pair<uint32_t, int64_t>;

  void make_node(uint32_t i) {
    MemoryOptions options;
    options.faults = faults_;
    options.counts = counts_;
    options.slice_bytes = 512;
    options.operations_max = 24;
    nodes_[i] = Node::make(memory_transport(options), kBlocks, kBlockBytes, Uuid{static_cast<uint8_t>(i + 1)}, 64);
    idle_[i].clear();
    ready_[i].clear();
  }

  void meet_all(uint32_t i) {
    for (uint32_t j = 0; j < kNodes; j++)
      if (j != i) peers_[i][j] = nodes_[i].meet(nodes_[j]);
  }

  uint64_t fresh_tag() { return ++tags_ << 16; }

  // A block of node i under a content of its own; false when all are in use.
  bool take(uint32_t i, bool is_ready, Held* out) {
    BlockTable& table = *nodes_[i].pool->table();
    if (table.reserve(1, 0, &out->block, &out->generation) != Status::kOk) return false;
    out->tag = fresh_tag();
    fill(*nodes_[i].pool, out->block, out->tag);
    if (!is_ready) return true;
    uint32_t existing;
    check(table.fill({&out->block, 1}) == Status::kOk, "filling");
    check(table.commit(out->block, {out->tag, 0, kNoBlock}, &existing) == Status::kOk, "ready");
    // Eviction would make it somebody else's; here only releases do.
    check(table.pin(out->block, out->generation, 0) == Status::kOk, "pinned");
    return true;
  }

  void give_back(uint32_t i, const Held& held, bool is_ready) {
    BlockTable& table = *nodes_[i].pool->table();
    if (is_ready) check(table.unpin(held.block, held.generation) == Status::kOk, "unpinned");
    check(table.release(held.block, held.generation) == Status::kOk, "released");
    if (table.state(held.block) == BlockState::kQuarantine) quarantined_++;
  }

  void begin() {
    Flight flight;
    flight.from = random_() % kNodes;
    flight.to = (flight.from + 1 + random_() % (kNodes - 1)) % kNodes;
    flight.reads = random_() % 2 == 0;
    flight.integrity = static_cast<Integrity>(random_() % 3);
    const uint32_t source = flight.reads ? flight.to : flight.from;
    const uint32_t target = flight.reads ? flight.from : flight.to;
    for (uint32_t count = pick(random_, 1, 4); count > 0; count--) {
      Held from, to;
      // Sometimes what arrived earlier is moved on, so that bytes wander.
      const bool moves_on = !ready_[source].empty() && random_() % 2 == 0;
      if (moves_on) {
        from = ready_[source].back();
        ready_[source].pop_back();
      } else if (!take(source, true, &from)) {
        break;
      }
      flight.sources.push_back(from);
      if (!take(target, false, &to)) break;
      flight.targets.push_back(to);
    }
    TransferRequest request;
    request.peer = peers_[flight.from][flight.to];
    request.direction = flight.reads ? Direction::kRead : Direction::kWrite;
    request.local_pool = nodes_[flight.from].pool_id;
    request.remote_pool = nodes_[flight.to].pool_id;
    request.integrity = flight.integrity;
    request.priority = static_cast<uint8_t>(random_() % 3);
    for (size_t i = 0; i < flight.targets.size(); i++) {
      const Held& local = flight.reads ? flight.targets[i] : flight.sources[i];
      const Held& remote = flight.reads ? flight.sources[i] : flight.targets[i];
      request.local_blocks.push_back(local.block);
      request.local_generations.push_back(local.generation);
      request.remote_blocks.push_back(remote.block);
      request.remote_generations.push_back(remote.generation - (random_() % 100 == 0 ? 1 : 0));
    }
    if (random_() % 4 == 0) request.deadline_ns = nodes_[flight.from].agent->now_ns() + pick(random_, 1, 2000) * 1000;
    if (random_() % 4 == 0) request.notification = {1};
    std::string error;
    if (!flight.reads && !flight.targets.empty() && random_() % 4 == 0) name_lease(flight, request.remote_blocks);
    request.lease = static_cast<uint64_t>(flight.lease);
    const int64_t id = flight.targets.empty() ? static_cast<int64_t>(Status::kInvalid)
                                              : nodes_[flight.from].agent->submit(std::move(request), &error);
    if (id <= 0) {
      refused_[static_cast<Status>(id)]++;
      return forget(flight);
    }
    submitted_++;
    flights_.emplace(Key{flight.from, id}, std::move(flight));
  }

  // A new one, or one that should not be good any more.
  void name_lease(Flight& flight, std::span<const uint32_t> blocks) {
    const Spent spent = spent_.empty() ? Spent{} : spent_[random_() % spent_.size()];
    flight.is_spent = spent.lease != 0 && spent.owner == flight.to && spent.user == flight.from;
    std::string error;
    if (flight.is_spent) flight.lease = spent.lease;
    else flight.lease = nodes_[flight.to].agent->lease(nodes_[flight.to].pool_id, blocks, 60'000, peers_[flight.to][flight.from], &error);
    check(flight.lease > 0, error);
  }

  void take_lease_back(Flight& flight) {
    if (flight.lease == 0 || flight.is_spent) return;
    check(nodes_[flight.to].agent->release_lease(static_cast<uint64_t>(flight.lease)) == Status::kOk, "a lease is released once");
    flight.lease = 0;
  }

  uint32_t source_node(const Flight& flight) const { return flight.reads ? flight.to : flight.from; }
  uint32_t target_node(const Flight& flight) const { return flight.reads ? flight.from : flight.to; }

  void release_sources(Flight& flight) {
    for (const Held& held : flight.sources) give_back(source_node(flight), held, true);
    flight.sources_released = true;
  }

  void release_targets(Flight& flight) {
    for (const Held& held : flight.targets) give_back(target_node(flight), held, false);
    flight.targets_released = true;
  }

  void forget(Flight& flight) {
    take_lease_back(flight);
    if (!flight.sources_released) release_sources(flight);
    if (!flight.targets_released) release_targets(flight);
  }

  std::map<Key, Flight>::iterator any_flight() {
    const auto from = flights_.lower_bound({random_() % kNodes, static_cast<int64_t>(random_() % 64)});
    return from == flights_.end() ? flights_.begin() : std::next(from, random_() % 2 == 0 && std::next(from) != flights_.end() ? 1 : 0);
  }

  void cancel_one() {
    if (flights_.empty()) return;
    const auto found = any_flight();
    Flight& flight = found->second;
    nodes_[found->first.first].agent->cancel(static_cast<uint64_t>(found->first.second));
    if (random_() % 2 == 0) return;
    // The worst that an owner can do: it takes the blocks back at once and uses what it gets for others.
    if (!flight.targets_released) release_targets(flight);
    for (size_t i = 0; i < flight.targets.size(); i++) {
      Held held;
      if (idle_[target_node(flight)].size() < 24 && take(target_node(flight), false, &held))
        idle_[target_node(flight)].push_back(held);
    }
  }

  // The owner lets go of blocks that an operation works on. They must not come back before it has ended.
  void release_one() {
    if (flights_.empty()) return;
    Flight& flight = any_flight()->second;
    if (random_() % 4 == 0) take_lease_back(flight);
    else if (random_() % 2 == 0 && !flight.sources_released) release_sources(flight);
    else if (!flight.targets_released) release_targets(flight);
  }

  // Blocks with new contents that no operation knows: they are looked at some time later.
  void look_at_one() {
    const uint32_t i = random_() % kNodes;
    Held held;
    if (idle_[i].size() < 16 && take(i, false, &held)) idle_[i].push_back(held);
    if (idle_[i].empty()) return;
    const size_t at = random_() % idle_[i].size();
    check(holds(*nodes_[i].pool, idle_[i][at].block, idle_[i][at].tag), "no foreign byte in a block that was reused");
    looked_++;
    if (random_() % 2 == 0) return;
    give_back(i, idle_[i][at], false);
    idle_[i].erase(idle_[i].begin() + static_cast<ptrdiff_t>(at));
  }

  // What arrived must be what the source held, whatever its owner did meanwhile; unless corrupted unseen, by one bit.
  void check_bytes(const Flight& flight) {
    const Pool& pool = *nodes_[target_node(flight)].pool;
    int bits = 0;
    for (size_t i = 0; i < flight.targets.size(); i++) {
      const uint64_t* const words = words_of(pool, flight.targets[i].block);
      for (uint64_t w = 0; w < kBlockBytes / 8; w++) bits += __builtin_popcountll(words[w] ^ (flight.sources[i].tag + w));
    }
    check(bits == 0 || (bits == 1 && flight.integrity != Integrity::kFull), "the bytes of the source arrived");
  }

  void complete(const Event& event, uint32_t i) {
    const auto found = flights_.find({i, static_cast<int64_t>(event.id)});
    check(found != flights_.end(), "a transfer completes once");
    Flight flight = std::move(found->second);
    flights_.erase(found);
    ended_[event.status]++;
    check(!flight.is_spent || event.status != Status::kOk, "a lease that has ended lets nothing pass");
    if (flight.lease != 0 && !flight.is_spent && event.status == Status::kOk) {
      spent_.push_back({flight.to, flight.from, flight.lease});
      if (spent_.size() > kFlightsMax) spent_.erase(spent_.begin());
    }
    take_lease_back(flight);
    const bool is_whole = event.status == Status::kOk && !flight.targets_released;
    if (is_whole) check_bytes(flight);
    if (!flight.sources_released) release_sources(flight);
    if (is_whole && ready_[target_node(flight)].size() < 8 && flight.integrity == Integrity::kFull) keep(flight);
    else if (!flight.targets_released) release_targets(flight);
  }

  // The targets become blocks that can be read.
  void keep(const Flight& flight) {
    BlockTable& table = *nodes_[target_node(flight)].pool->table();
    for (size_t i = 0; i < flight.targets.size(); i++) {
      Held held = flight.targets[i];
      held.tag = flight.sources[i].tag;
      uint32_t existing;
      check(table.fill({&held.block, 1}) == Status::kOk, "filling");
      if (table.commit(held.block, {held.tag, 0, kNoBlock}, &existing) != Status::kOk) {
        check(table.release(held.block, held.generation) == Status::kOk, "it is here already");
        continue;
      }
      check(table.pin(held.block, held.generation, 0) == Status::kOk, "pinned");
      ready_[target_node(flight)].push_back(held);
    }
  }

  void listen(uint32_t i) {
    std::vector<Event> events;
    nodes_[i].agent->poll(64, &events);
    for (const Event& event : events) {
      if (event.kind == EventKind::kCompletion) complete(event, i);
      if (event.kind == EventKind::kNotification) notified_++;
      if (event.kind != EventKind::kPeerLost) continue;
      lost_++;
      for (uint32_t j = 0; j < kNodes; j++)
        if (j != i && peers_[i][j] == event.peer) peers_[i][j] = nodes_[i].meet(nodes_[j]);
    }
  }

  // An agent ends with all that it has in flight, and another life of it begins.
  void die() {
    next_death_ = submitted_ + std::min<uint64_t>(operations_ / 8 + 1, 2500);
    const uint32_t i = random_() % kNodes;
    nodes_[i].agent->close();
    while (std::any_of(flights_.begin(), flights_.end(), [&](const auto& it) { return it.first.first == i; })) {
      const size_t before = flights_.size();
      listen(i);
      check(flights_.size() < before, "closing completes everything");
    }
    // What others still do there fails; its blocks are gone with it.
    for (auto& [key, flight] : flights_) {
      if (flight.to != i) continue;
      flight.lease = 0;
      if (flight.reads) flight.sources_released = true;
      else flight.targets_released = true;
    }
    std::erase_if(spent_, [&](const Spent& spent) { return spent.owner == i; });
    nodes_[i].agent.reset();
    make_node(i);
    meet_all(i);
    for (uint32_t j = 0; j < kNodes; j++)
      if (j != i) peers_[j][i] = nodes_[j].meet(nodes_[i]);
    deaths_++;
  }

  void report() {
    for (uint32_t i = 0; i < kNodes; i++) {
      for (const Held& held : idle_[i]) check(holds(*nodes_[i].pool, held.block, held.tag), "no foreign byte at the end");
      // Leases are let go when the word of their user has come.
      const auto until = std::chrono::steady_clock::now() + kWaitMax;
      while (nodes_[i].pool->table()->settle(), nodes_[i].pool->table()->stats().quarantine != 0)
        check(std::chrono::steady_clock::now() < until, "blocks under leases come back");
      check(nodes_[i].pool->table()->consistent(), "all came out");
    }
    const struct {
      const char* name;
      uint64_t count;
    } happened[] = {{"done", ended_[Status::kOk]},
                    {"cancelled", ended_[Status::kCancelled]},
                    {"deadline", ended_[Status::kDeadline]},
                    {"peer lost", ended_[Status::kPeerLost]},
                    {"corrupt", ended_[Status::kCorrupt]},
                    {"broken off", ended_[Status::kSystem]},
                    {"stale", ended_[Status::kStale]},
                    {"closed", ended_[Status::kClosed]},
                    {"without a lease", ended_[Status::kNotAllowed]},
                    {"notified", notified_},
                    {"links lost", lost_},
                    {"deaths", deaths_},
                    {"released under an operation", quarantined_},
                    {"looked at", looked_},
                    {"delayed", counts_->delayed},
                    {"dropped", counts_->dropped},
                    {"partial", counts_->partial},
                    {"reordered", counts_->reordered},
                    {"corrupted", counts_->corrupted},
                    {"lingered", counts_->lingered},
                    {"cut", counts_->cut},
                    {"late", counts_->late}};
    std::printf("abort fuzz: %llu operations;", static_cast<unsigned long long>(submitted_));
    for (const auto& it : happened) std::printf(" %s %llu,", it.name, static_cast<unsigned long long>(it.count));
    std::printf(" every one completed\n");
    for (const auto& it : happened) check(it.count > 0, std::string(it.name) + " happened");
    check(counts_->corrupted_checked >= counts_->corrupted_found, "no more was found than was there");
  }

  std::mt19937& random_;
  const uint64_t operations_;
  MemoryFaults faults_;
  std::shared_ptr<MemoryFaultCounts> counts_;
  Node nodes_[kNodes];
  uint32_t peers_[kNodes][kNodes] = {};
  std::map<Key, Flight> flights_;
  // Blocks that nobody works on; blocks that arrived and can be read.
  std::vector<Held> idle_[kNodes], ready_[kNodes];
  std::map<Status, uint64_t> ended_, refused_;
  std::vector<Spent> spent_;
  uint64_t tags_ = 0, submitted_ = 0, quarantined_ = 0, looked_ = 0, notified_ = 0, lost_ = 0, deaths_ = 0;
  uint64_t next_death_ = 200;
};

}  // namespace

void abort_random(std::mt19937& random, uint32_t operations) { Fuzz(random, operations).run(); }

}  // namespace millrace::kv::test
