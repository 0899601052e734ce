// Leases: blocks of ours kept for a peer. Pins are the owner's, taken and ended on its thread; the progress thread only
// watches the time and talks to the other side, by notifications with an envelope of their own:
//
//     user of the blocks                        owner
//     kRenew [uses] every kHeartbeatMs   →      puts the end off
//                                        ←      kHeld [uses] of what is leased, kRevoke [uses] of what is not any more
//     kDone [uses]                       →      none of its transfers is under the lease
//
// A use is a lease with the user's turn: one number for the time from the first transfer under a lease to the last, and
// another, greater one when the lease is named again after that. Answers repeat it, so that one that is late, to an earlier
// use, neither grants nor ends a later one. A transfer under a lease begins when kHeld has come. Blocks held for writes are let go at kDone or the peer's loss, never
// by time alone: a one-sided write could still be under way.
#include <algorithm>

#include "agent_state.h"
#include "words.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kTtlMsMax = 24u * 3600 * 1000;
// Uses in one message, of ours and of peers.
constexpr size_t kUsesMax = 2048;
static_assert(1 + kUsesMax * sizeof(LeaseUse) <= kNotificationBytesMax);
constexpr uint64_t kLeaseTickNs = 10'000'000;

std::vector<uint8_t> message(Envelope kind, std::span<const LeaseUse> uses) {
  std::vector<uint8_t> out{static_cast<uint8_t>(kind)};
  for (const LeaseUse& use : uses) put<LeaseUse>(&out, use);
  return out;
}

std::vector<uint8_t> message(Envelope kind, const LeaseUse& use) { return message(kind, std::span(&use, 1)); }

}  // namespace

int64_t Agent::lease(uint32_t pool_id, std::span<const uint32_t> blocks, uint32_t ttl_ms, uint32_t peer,
                     std::string* error) {
  State& state = *state_;
  const auto refuse = [&](Status status, const std::string& why) {
    *error = why;
    return static_cast<int64_t>(status);
  };
  const Inside inside(state.callers_inside);
  if (state.is_closed.load(std::memory_order_seq_cst)) return refuse(Status::kClosed, "the agent is closed");
  if (ttl_ms < 1 || ttl_ms > kTtlMsMax)
    return refuse(Status::kInvalid, "ttl_ms must be from 1 to " + std::to_string(kTtlMsMax) + "; got " + std::to_string(ttl_ms));
  if (blocks.empty() || blocks.size() > kBlocksPerTransferMax)
    return refuse(Status::kInvalid, "blocks must be from 1 to " + std::to_string(kBlocksPerTransferMax) + "; got " +
                                        std::to_string(blocks.size()));
  const std::shared_ptr<const Tables> tables = state.tables();
  const auto found = tables->pools.find(pool_id);
  if (found == tables->pools.end()) return refuse(Status::kNotFound, "pool: no pool " + std::to_string(pool_id) + " here");
  if (peer != 0 && tables->peers.count(peer) == 0)
    return refuse(Status::kNotFound, "peer " + std::to_string(peer) + " is not known");
  BlockTable* const table = found->second->pool->table();
  if (table == nullptr) return refuse(Status::kUnsupported, "pool " + std::to_string(pool_id) + " keeps no block states");
  Lease made;
  made.peer = peer;
  made.ttl_ns = uint64_t{ttl_ms} * 1'000'000;
  made.expires_ns = state.now_ns() + made.ttl_ns;
  made.blocks.assign(blocks.begin(), blocks.end());
  for (const uint32_t block : blocks) {
    if (block >= table->blocks())
      return refuse(Status::kInvalid, "blocks must be below " + std::to_string(table->blocks()) + "; got " + std::to_string(block));
    made.generations.push_back(table->generation(block));
  }
  made.is_for_writes = table->state(blocks[0]) != BlockState::kReady;
  if (made.is_for_writes && peer == 0)
    return refuse(Status::kInvalid, "peer must be given for blocks that are not ready, which it is to write");
  if (!found->second->use()) return refuse(Status::kNotFound, "the pool is being removed");
  made.pool = found->second;
  Status status = Status::kOk;
  if (made.is_for_writes) {
    status = made.hold.serve(*made.pool->pool, Direction::kWrite, made.blocks, made.generations, error);
  } else {
    size_t pinned = 0;
    while (pinned < blocks.size() && status == Status::kOk) {
      status = table->pin(blocks[pinned], made.generations[pinned], 0);
      if (status == Status::kOk) pinned++;
    }
    if (status != Status::kOk) {
      *error = "block " + std::to_string(blocks[pinned]) + " is not ready, as the first one is";
      while (pinned-- > 0) table->unpin(blocks[pinned], made.generations[pinned]);
    }
  }
  const std::lock_guard lock(state.leases_lock);
  if (status == Status::kOk && state.leases.size() >= kLeasesMax) {
    status = Status::kFull;
    *error = "leases: at most " + std::to_string(kLeasesMax);
    if (!made.is_for_writes)
      for (size_t i = 0; i < blocks.size(); i++) table->unpin(blocks[i], made.generations[i]);
  }
  if (status != Status::kOk) {
    made.hold.leave();
    made.pool->unuse();
    return static_cast<int64_t>(status);
  }
  const uint64_t id = ++state.leases_made;
  state.leases.emplace(id, std::move(made));
  state.leases_count.store(state.leases.size(), std::memory_order_relaxed);
  state.kick();
  return static_cast<int64_t>(id);
}

Status Agent::release_lease(uint64_t id) {
  State& state = *state_;
  const std::lock_guard lock(state.leases_lock);
  const auto found = state.leases.find(id);
  if (found == state.leases.end() || found->second.is_released) return Status::kNotFound;
  Lease& lease = found->second;
  if (lease.is_for_writes && !lease.is_quiet) {
    // The progress thread asks the peer to stop, and lets the blocks go when it has.
    lease.is_released = true;
    lease.expires_ns = 0;
    return Status::kOk;
  }
  for (size_t i = 0; i < lease.blocks.size() && !lease.is_for_writes; i++)
    lease.pool->pool->table()->unpin(lease.blocks[i], lease.generations[i]);
  lease.pool->unuse();
  state.leases.erase(found);
  state.leases_count.store(state.leases.size(), std::memory_order_relaxed);
  return Status::kOk;
}

Status Agent::hold_lease(uint32_t peer, uint64_t lease) {
  Status status = Status::kClosed;
  state_->command([&] {
    State& state = *state_;
    const std::shared_ptr<const Tables> tables = state.tables();
    const auto found = tables->peers.find(peer);
    status = found == tables->peers.end() ? Status::kNotFound : found->second->state.load(std::memory_order_relaxed);
    if (status != Status::kOk) return;
    if (state.held.size() >= kLeasesMax) {
      status = Status::kFull;
      return;
    }
    HeldLease& it = state.hold(peer, lease);
    if (it.is_revoked) status = Status::kNotAllowed;
    else it.is_explicit = true;
  });
  return status;
}

Status Agent::drop_lease(uint32_t peer, uint64_t lease) {
  Status status = Status::kClosed;
  state_->command([&] {
    const auto found = state_->held.find({peer, lease});
    status = found == state_->held.end() ? Status::kNotFound : Status::kOk;
    if (status != Status::kOk) return;
    found->second.is_explicit = false;
    state_->end_held(peer, lease);
  });
  return status;
}

// The use of a lease that goes on, or a new one, of which the owner is asked at once.
HeldLease& Agent::State::hold(uint32_t peer, uint64_t lease) {
  const auto [found, is_new] = held.try_emplace({peer, lease});
  if (!is_new) return found->second;
  found->second.turn = ++turns_made;
  send(peer, message(Envelope::kRenew, LeaseUse{lease, found->second.turn}));
  return found->second;
}

Status Agent::State::use_lease(uint32_t slot) {
  Record& record = records[slot];
  HeldLease& it = hold(record.peer->id, record.request.lease);
  it.transfers++;
  record.uses_lease = true;
  // Others under it are being stopped; nobody will speak of this use again.
  if (it.is_revoked) return Status::kNotAllowed;
  return it.is_granted ? Status::kOk : Status::kBusy;
}

void Agent::State::unuse_lease(const Record& record) {
  const auto found = held.find({record.peer->id, record.request.lease});
  // Gone with a peer that was lost.
  if (found == held.end()) return;
  found->second.transfers--;
  end_held(record.peer->id, record.request.lease);
}

// Tells the owner, when nothing here needs the lease.
void Agent::State::end_held(uint32_t peer, uint64_t lease) {
  const auto found = held.find({peer, lease});
  if (found == held.end() || found->second.transfers != 0) return;
  if (found->second.is_explicit && !found->second.is_revoked) return;
  const LeaseUse use{lease, found->second.turn};
  held.erase(found);
  send(peer, message(Envelope::kDone, use));
}

void Agent::State::leases_of_lost(uint32_t peer) {
  held.erase(held.lower_bound({peer, 0}), held.lower_bound({peer + 1, 0}));
  const std::lock_guard lock(leases_lock);
  for (auto& [id, lease] : leases)
    if (lease.peer == peer) end_lease(id, lease, Status::kPeerLost);
  erase_released();
}

// With leases_lock. The peer is done with the blocks.
void Agent::State::end_lease(uint64_t id, Lease& lease, Status why) {
  lease.hold.leave();
  lease.is_quiet = true;
  tell_end(id, lease, why);
}

// With leases_lock.
void Agent::State::tell_end(uint64_t id, Lease& lease, Status why) {
  if (lease.has_ended || lease.is_released) return;
  lease.has_ended = true;
  leases_ended.fetch_add(1, std::memory_order_relaxed);
  Event event;
  event.kind = EventKind::kLeaseExpired;
  event.status = why;
  event.id = id;
  event.peer = lease.peer;
  event.done_ns = now_ns();
  publish(std::move(event));
}

// With leases_lock: write leases that the owner released and whose peer is done.
void Agent::State::erase_released() {
  for (auto it = leases.begin(); it != leases.end();) {
    if (it->second.is_released && it->second.is_quiet) {
      it->second.pool->unuse();
      it = leases.erase(it);
    } else {
      ++it;
    }
  }
  leases_count.store(leases.size(), std::memory_order_relaxed);
}

// Bytes of a peer: whoever does not keep to the form is no agent, and is cut off.
void Agent::State::control(uint32_t peer, Envelope kind, std::span<const uint8_t> body) {
  const bool is_known = kind >= Envelope::kRenew && kind <= Envelope::kDone;
  const size_t count = body.size() / sizeof(LeaseUse);
  if (!is_known || body.size() % sizeof(LeaseUse) != 0 || count < 1 || count > kUsesMax)
    return cut_off(peer, "its word about leases, of kind " + std::to_string(static_cast<int>(kind)) + " and " +
                             std::to_string(body.size()) + " bytes, is none");
  std::vector<LeaseUse> uses(count);
  std::memcpy(uses.data(), body.data(), body.size());
  if (kind == Envelope::kRenew || kind == Envelope::kDone) return from_user(peer, kind, uses);
  for (const LeaseUse& use : uses) from_owner(peer, kind, use);
}

// The owner of a lease that we use, or used, speaks.
void Agent::State::from_owner(uint32_t peer, Envelope kind, const LeaseUse& use) {
  const auto found = held.find({peer, use.lease});
  if (found == held.end()) {
    // Nothing here is under that lease, and the owner waits to hear so.
    if (kind == Envelope::kRevoke) send(peer, message(Envelope::kDone, use));
    return;
  }
  // Of an earlier use: what it will say of this one is on its way.
  if (found->second.turn != use.turn) return;
  (kind == Envelope::kHeld ? found->second.is_granted : found->second.is_revoked) = true;
  std::vector<uint32_t> affected;
  for (const uint32_t slot : active)
    if (records[slot].uses_lease && records[slot].peer->id == peer && records[slot].request.lease == use.lease)
      affected.push_back(slot);
  for (const uint32_t slot : affected) {
    if (kind == Envelope::kRevoke) {
      stop_transfer(slot, Status::kNotAllowed);
    } else if (records[slot].stage == Stage::kParked) {
      records[slot].stage = Stage::kPosted;
      choose(slot);
    }
  }
  if (kind == Envelope::kRevoke) end_held(peer, use.lease);
}

// The other side of a lease that we gave speaks. Its turns only grow.
void Agent::State::from_user(uint32_t peer, Envelope kind, const std::vector<LeaseUse>& uses) {
  std::vector<LeaseUse> granted, refused;
  const std::lock_guard lock(leases_lock);
  const uint64_t now = now_ns();
  for (const LeaseUse& use : uses) {
    const auto found = leases.find(use.lease);
    const bool is_theirs = found != leases.end() && (found->second.peer == peer || found->second.peer == 0);
    // What was said of an earlier use, and came late, is over.
    if (is_theirs && use.turn < found->second.turn) continue;
    if (kind == Envelope::kDone) {
      if (is_theirs && found->second.peer == peer) end_lease(use.lease, found->second, Status::kOk);
    } else if (!is_theirs || found->second.has_ended || found->second.is_released) {
      if (is_theirs) found->second.turn = use.turn;
      refused.push_back(use);
    } else {
      Lease& lease = found->second;
      // Whoever comes first, where the owner named nobody.
      lease.peer = peer;
      lease.turn = use.turn;
      lease.expires_ns = now + lease.ttl_ns;
      granted.push_back(use);
    }
  }
  erase_released();
  if (!granted.empty()) send(peer, message(Envelope::kHeld, granted));
  if (!refused.empty()) send(peer, message(Envelope::kRevoke, refused));
}

void Agent::State::heartbeat(uint64_t now) {
  next_heartbeat_ns = now + uint64_t{kHeartbeatMs} * 1'000'000;
  std::vector<LeaseUse> uses;
  for (auto it = held.begin(); it != held.end(); ++it) {
    if (!it->second.is_revoked) uses.push_back({it->first.second, it->second.turn});
    const auto next = std::next(it);
    const bool is_last = next == held.end() || next->first.first != it->first.first;
    if (uses.empty() || (!is_last && uses.size() < kUsesMax)) continue;
    send(it->first.first, message(Envelope::kRenew, uses));
    uses.clear();
  }
}

void Agent::State::tend_leases(uint64_t now) {
  if (!held.empty() && now >= next_heartbeat_ns) heartbeat(now);
  if (leases_count.load(std::memory_order_relaxed) == 0) {
    next_lease_check_ns = 0;
    return;
  }
  if (now < next_lease_check_ns) return;
  next_lease_check_ns = now + kLeaseTickNs;
  const std::shared_ptr<const Tables> tables_here = tables();
  const std::lock_guard lock(leases_lock);
  for (auto& [id, lease] : leases) {
    if (lease.expires_ns > now || lease.is_quiet) continue;
    const auto peer = tables_here->peers.find(lease.peer);
    const bool is_reached = peer != tables_here->peers.end() && peer->second->state.load() == Status::kOk;
    if (!is_reached) {
      end_lease(id, lease, lease.peer == 0 ? Status::kDeadline : Status::kPeerLost);
      continue;
    }
    tell_end(id, lease, Status::kDeadline);
    if (!lease.is_revoke_sent) send(lease.peer, message(Envelope::kRevoke, LeaseUse{id, lease.turn}));
    lease.is_revoke_sent = true;
  }
  erase_released();
}

}  // namespace millrace::kv
