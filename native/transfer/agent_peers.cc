// Pools, peers and what they know of each other. The calls of agent.h wait here while the progress thread does the work, so
// that transports have one caller only; what changes is published as new tables, which callers copy by pointer.
#include <algorithm>

#include "agent_state.h"

namespace millrace::kv {

bool Agent::State::command(std::function<void()> run) {
  std::unique_lock lock(commands_lock);
  if (!takes_commands) return false;
  commands.push_back(&run);
  commands_pending.store(true, std::memory_order_seq_cst);
  lock.unlock();
  kick();
  lock.lock();
  command_done.wait(lock, [&] { return std::find(commands.begin(), commands.end(), &run) == commands.end(); });
  return true;
}

void Agent::State::publish_tables(const std::function<void(Tables&)>& change) {
  auto next = std::make_shared<Tables>(*tables());
  change(*next);
  std::shared_ptr<const Tables> before = std::move(next);
  const std::lock_guard lock(tables_lock);
  tables_now.swap(before);
}

Status Agent::add_pool(std::unique_ptr<Pool> pool, uint32_t* id_out, std::string* error) {
  Status status = Status::kClosed;
  *error = "the agent is closed";
  state_->command([&] { status = state_->add_pool_now(pool, id_out, error); });
  return status;
}

Status Agent::State::add_pool_now(std::unique_ptr<Pool>& pool, uint32_t* id_out, std::string* error) {
  error->clear();
  if (tables()->pools.size() == kPoolsMax) {
    *error = "pools: at most " + std::to_string(kPoolsMax);
    return Status::kFull;
  }
  if (pool->layout().blocks() == 0 || pool->layout().pool_bytes() > pool->bytes()) {
    *error = "layout must be set and lie inside the pool's " + std::to_string(pool->bytes()) + " bytes; it has " +
             std::to_string(pool->layout().blocks()) + " blocks in " + std::to_string(pool->layout().pool_bytes()) + " bytes";
    return Status::kInvalid;
  }
  if (pool->table() != nullptr && pool->table()->blocks() != pool->layout().blocks()) {
    *error = "the table must have as many blocks as the layout, " + std::to_string(pool->layout().blocks()) + "; it has " +
             std::to_string(pool->table()->blocks());
    return Status::kInvalid;
  }
  pool->id = pools_made + 1;
  std::vector<Transport*> added;
  for (const auto& way : transports) {
    const Status status = way->transport->add_pool(pool.get());
    if (status == Status::kOk) added.push_back(way->transport.get());
    if (status == Status::kOk || status == Status::kUnsupported) continue;
    for (Transport* transport : added) transport->remove_pool(pool.get());
    *error = way->name + " does not take the pool: " + status_name(status);
    return status;
  }
  if (added.empty()) {
    *error = "no transport can reach memory of this kind";
    return Status::kUnsupported;
  }
  *id_out = ++pools_made;
  auto entry = std::make_shared<PoolEntry>();
  entry->pool = std::move(pool);
  publish_tables([&](Tables& next) { next.pools[*id_out] = entry; });
  return Status::kOk;
}

Status Agent::remove_pool(uint32_t id) {
  Status status = Status::kClosed;
  state_->command([&] { status = state_->remove_pool_now(id); });
  return status;
}

Status Agent::State::remove_pool_now(uint32_t id) {
  const std::shared_ptr<const Tables> now = tables();
  const auto found = now->pools.find(id);
  if (found == now->pools.end()) return Status::kNotFound;
  PoolEntry& entry = *found->second;
  entry.is_closing.store(true, std::memory_order_seq_cst);
  Status status = entry.users.load(std::memory_order_seq_cst) == 0 ? Status::kOk : Status::kBusy;
  std::vector<Transport*> removed;
  for (size_t way = 0; way < transports.size() && status == Status::kOk; way++) {
    Transport* const transport = transports[way]->transport.get();
    status = transport->remove_pool(entry.pool.get());
    if (status == Status::kOk) removed.push_back(transport);
    // It never took this pool.
    if (status == Status::kNotFound || status == Status::kUnsupported) status = Status::kOk;
  }
  if (status != Status::kOk) {
    for (Transport* transport : removed) transport->add_pool(entry.pool.get());
    entry.is_closing.store(false, std::memory_order_seq_cst);
    return status;
  }
  publish_tables([&](Tables& next) { next.pools.erase(id); });
  return Status::kOk;
}

Pool* Agent::pool(uint32_t id) { return state_->pool(id); }

std::vector<uint8_t> Agent::metadata() {
  std::vector<uint8_t> out;
  state_->command([&] { out = state_->metadata_now(); });
  return out;
}

std::vector<uint8_t> Agent::State::metadata_now() {
  Metadata metadata;
  metadata.uuid = uuid;
  metadata.epoch = epoch;
  metadata.name = options.name;
  for (const auto& [id, entry] : tables()->pools)
    metadata.pools.push_back({id, entry->pool->table() != nullptr, entry->pool->kind(), entry->pool->layout()});
  for (const auto& way : transports) {
    metadata.transports.push_back({way->name, {}});
    way->transport->describe(&metadata.transports.back().described);
  }
  return metadata.encode();
}

Status Agent::add_peer(std::span<const uint8_t> bytes, uint32_t* peer_out, std::string* error) {
  Metadata metadata;
  Status status = Metadata::decode(bytes, &metadata, error);
  if (status != Status::kOk) return status;
  status = Status::kClosed;
  *error = "the agent is closed";
  state_->command([&] { status = state_->add_peer_now(metadata, peer_out, error); });
  return status;
}

// Of agents that are no peers now, the one that began longest ago: nobody will bring its metadata any more.
void Agent::State::forget_oldest(const Tables& now) {
  auto oldest = known.end();
  for (auto it = known.begin(); it != known.end(); ++it) {
    const auto& [since, peer] = it->second;
    if (now.peers.count(peer) == 0 && (oldest == known.end() || since < oldest->second.first)) oldest = it;
  }
  if (oldest != known.end()) known.erase(oldest);
}

Status Agent::State::add_peer_now(const Metadata& metadata, uint32_t* peer_out, std::string* error) {
  error->clear();
  if (metadata.uuid == uuid && metadata.epoch != epoch) {
    *error = "this is an earlier or later life of this agent itself";
    return Status::kInvalid;
  }
  std::shared_ptr<const Tables> now = tables();
  uint32_t id = 0;
  const auto before = known.find(metadata.uuid);
  if (before != known.end()) {
    if (metadata.epoch < before->second.first) {
      *error = "epoch must be at least " + std::to_string(before->second.first) + ", which fenced earlier ones; got " +
               std::to_string(metadata.epoch);
      return Status::kStale;
    }
    if (metadata.epoch == before->second.first && now->peers.count(before->second.second) != 0) {
      id = before->second.second;
    } else {
      remove_peer_now(before->second.second, Status::kStale);
      now = tables();
    }
  }
  if (id == 0 && now->peers.size() == kPeersMax) {
    *error = "peers: at most " + std::to_string(kPeersMax);
    return Status::kFull;
  }
  if (id == 0 && known.size() >= kKnownMax) forget_oldest(*now);
  const bool is_new = id == 0;
  if (is_new) id = now->peers_made + 1;
  auto peer = std::make_shared<Peer>();
  peer->id = id;
  peer->metadata = metadata;
  uint32_t ways = 0;
  for (size_t way = 0; way < transports.size(); way++) {
    for (const TransportDescription& theirs : metadata.transports) {
      if (theirs.name != transports[way]->name) continue;
      std::string reason = "refused";
      if (transports[way]->transport->add_peer(id, theirs.described, &reason) == Status::kOk) ways |= 1u << way;
      else *error += (error->empty() ? "" : "; ") + theirs.name + ": " + reason;
    }
  }
  if (ways == 0) {
    *error = "no transport reaches this peer" + (error->empty() ? "" : ": " + *error);
    if (!is_new) remove_peer_now(id, Status::kPeerLost);
    return Status::kUnsupported;
  }
  error->clear();
  peer->ways.store(ways, std::memory_order_relaxed);
  publish_tables([&](Tables& next) {
    next.peers[id] = peer;
    if (is_new) next.peers_made = id;
  });
  // Transfers that were posted under the earlier description are this peer's too.
  for (const uint32_t slot : active)
    if (records[slot].peer->id == id) records[slot].peer = peer;
  known[metadata.uuid] = {metadata.epoch, id};
  *peer_out = id;
  Event event;
  event.kind = EventKind::kPeerUp;
  event.peer = id;
  event.done_ns = now_ns();
  publish(std::move(event));
  return Status::kOk;
}

Status Agent::remove_peer(uint32_t peer) {
  Status status = Status::kClosed;
  state_->command([&] { status = state_->remove_peer_now(peer, Status::kCancelled); });
  return status;
}

// `cause`: how its transfers end, and those that somebody is posting just now.
Status Agent::State::remove_peer_now(uint32_t id, Status cause) {
  const std::shared_ptr<const Tables> now = tables();
  const auto found = now->peers.find(id);
  if (found == now->peers.end()) return id != 0 && id <= now->peers_made ? Status::kStale : Status::kNotFound;
  Peer& peer = *found->second;
  peer.state.store(cause == Status::kCancelled ? Status::kStale : cause, std::memory_order_release);
  peer.ways.store(0, std::memory_order_relaxed);
  for (const auto& way : transports) way->transport->remove_peer(id);
  fail_peer(id, cause);
  publish_tables([&](Tables& next) { next.peers.erase(id); });
  return Status::kOk;
}

void Agent::close() {
  State& state = *state_;
  const std::lock_guard once(state.close_lock);
  if (!state.thread.joinable()) return;
  state.is_closed.store(true, std::memory_order_seq_cst);
  // Each is between two steps of a submit, with nothing to wait for.
  while (state.callers_inside.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
  state.command([&] {
    state.is_stopping = true;
    const std::lock_guard lock(state.commands_lock);
    state.takes_commands = false;
  });
  state.thread.join();
}

std::string Agent::stats() {
  State& state = *state_;
  const std::shared_ptr<const Tables> now = state.tables();
  const auto field = [](const char* name, uint64_t value) { return "\"" + std::string(name) + "\":" + std::to_string(value); };
  const auto of = [&](const char* name, const std::atomic<uint64_t>& value) { return field(name, value.load()); };
  std::string json = "{" + field("epoch", state.epoch) + "," + field("pools", now->pools.size()) + "," +
                     field("peers", now->peers.size()) + "," + field("transfersActive", state.transfers_active.load()) +
                     "," + field("operationsMax", state.operations_max) + "," + of("notesSent", state.notes_sent) + "," +
                     of("notesReceived", state.notes_received) + "," + of("notesDropped", state.notes_dropped) + "," +
                     of("peersLost", state.peers_lost) + "," + of("leasesEnded", state.leases_ended) + ",\"transports\":{";
  bool is_first = true;
  for (const auto& way : state.transports) {
    const TransportCounters& counters = way->counters;
    json += (is_first ? "\"" : ",\"") + way->name + "\":{" + of("submitted", counters.submitted) + "," +
            of("done", counters.done) + "," + of("failed", counters.failed) + "," + of("bytesRead", counters.bytes_read) +
            "," + of("bytesWritten", counters.bytes_written) + "," + of("refusedFull", counters.refused_full) + "," +
            of("activeNs", counters.active_ns) + "}";
    is_first = false;
  }
  return json + "}}";
}

}  // namespace millrace::kv
