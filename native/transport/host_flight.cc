// Operations of a host transport from submit to completion; see host_transport.h for their phases.
#include "host_flight.h"

#include <algorithm>
#include <cstring>

#include "copy.h"
#include "copy_order.h"

namespace millrace::kv {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;
// One call of progress works so long on bytes, and looks at the clock after so many of them.
constexpr uint64_t kSliceNs = 200'000;
constexpr uint64_t kStepBytes = uint64_t{1} << 20;
// Who waits for a completion is told of it so soon, and posts anew while others still move; to tell of each of many small ones
// alone would cost more than they do.
constexpr uint64_t kTellNs = 20'000;
constexpr size_t kSpareRuns = 8;
constexpr uint64_t kWaitingScanNs = 10 * kMillisecond;
// A little less than what is promised, as times are looked at every 10 ms.
constexpr uint64_t kSilenceNs = (kPeerLossMs - 100) * kMillisecond;

// What was read before this was read before what is read after it.
void fence_loads() {
#if defined(__aarch64__)
  __asm__ __volatile__("dmb ishld" ::: "memory");
#else
  // Processors of the x86 family keep loads in order; this is for the compiler.
  __asm__ __volatile__("" ::: "memory");
#endif
}

}  // namespace

Status HostTransport::submit(uint32_t id, const Operation& operation) {
  const auto found = peers_.find(id);
  if (found == peers_.end()) return Status::kNotFound;
  if (found->second->is_lost) return Status::kPeerLost;
  if (flights_.size() >= kHostOperationsMax) return Status::kFull;
  const size_t blocks = operation.local_blocks.size();
  const bool fits = operation.local != nullptr && operation.transform != nullptr && blocks > 0 && blocks <= kBlocksMax &&
                    operation.remote_blocks.size() == blocks && operation.notification.size() <= kNotificationBytesMax &&
                    (operation.remote_generations.empty() || operation.remote_generations.size() == blocks) &&
                    !flights_.contains(operation.id);
  if (!fits) return Status::kInvalid;
  if ((info_.memory_kinds >> static_cast<uint32_t>(operation.local->kind()) & 1) == 0) return Status::kUnsupported;
  // Not shared this way, or not any more: it goes another way where there is one.
  const Peer& peer = *found->second;
  if (!peer.identities.contains(operation.remote_pool) && !peer.pools.contains(operation.remote_pool)) return Status::kUnsupported;
  auto flight = std::make_unique<Flight>();
  if (!spare_runs_.empty()) {
    flight->runs = std::move(spare_runs_.back());
    spare_runs_.pop_back();
  }
  const bool is_read = operation.direction == Direction::kRead;
  const BlockPairs pairs = in_copy_order(is_read ? operation.remote_blocks : operation.local_blocks,
                                         is_read ? operation.local_blocks : operation.remote_blocks);
  std::string error;
  const Status status = operation.transform->lower(pairs.sources, pairs.targets, static_cast<uint32_t>(blocks), &flight->runs, &error);
  if (status != Status::kOk) return status;
  flight->operation = operation;
  flight->peer = found->second;
  flight->submitted_ns = now_ns();
  waiting_++;
  Flight& placed = *flights_.emplace(operation.id, std::move(flight)).first->second;
  if (placed.peer->pools.contains(operation.remote_pool)) start(placed);
  return Status::kOk;
}

void HostTransport::start(Flight& flight) {
  const Operation& operation = flight.operation;
  const RemotePool& pool = *flight.peer->pools.at(operation.remote_pool);
  const bool is_read = operation.direction == Direction::kRead;
  const uint64_t source_bytes = is_read ? pool.facts.bytes : operation.local->bytes();
  const uint64_t target_bytes = is_read ? operation.local->bytes() : pool.facts.bytes;
  std::string error;
  Status status = measure_runs(flight.runs, source_bytes, target_bytes, &flight.bytes, &error);
  const bool has_table = pool.facts.has_table != 0;
  if (status == Status::kOk && has_table && operation.remote_generations.empty()) status = Status::kInvalid;
  if (status == Status::kOk && pool.table != nullptr && is_read) status = check_before(flight, pool);
  if (status != Status::kOk) return complete(operation.id, status);
  // Reads look at the generations themselves where they can.
  const bool needs_grant = has_table && (!is_read || pool.table == nullptr);
  if (needs_grant) return ask_grant(flight);
  set_moving(flight);
}

void HostTransport::set_moving(Flight& flight) {
  flight.pool = flight.peer->pools.at(flight.operation.remote_pool);
  const Status status =
      begin(flight.peer->process, *flight.pool, flight.operation, flight.runs, flight.bytes, &flight.move);
  if (status != Status::kOk) return complete(flight.operation.id, status);
  flight.phase = Phase::kMoving;
  waiting_--;
  moving_[flight.operation.priority].push_back(flight.operation.id);
}

Status HostTransport::check_before(const Flight& flight, const RemotePool& pool) const {
  const Operation& operation = flight.operation;
  for (size_t i = 0; i < operation.remote_generations.size(); i++) {
    const uint32_t block = operation.remote_blocks[i];
    if (block >= pool.table->table()->blocks()) return Status::kInvalid;
    const BlockState state = pool.table->table()->state(block);
    const bool is_other = pool.table->table()->generation(block) != operation.remote_generations[i];
    if (is_other || state == BlockState::kFree || state == BlockState::kQuarantine) return Status::kStale;
    // Nobody has said yet that there is anything to read.
    if (state == BlockState::kReserved) return Status::kNotAllowed;
  }
  return Status::kOk;
}

// The generation goes up before a block's next owner writes, so that one that stands as it did vouches for every byte read.
Status HostTransport::check_after(const Flight& flight, const RemotePool& pool) const {
  const Operation& operation = flight.operation;
  fence_loads();
  for (size_t i = 0; i < operation.remote_generations.size(); i++) {
    if (pool.table->table()->generation(operation.remote_blocks[i]) != operation.remote_generations[i]) {
      return Status::kStale;
    }
  }
  return Status::kOk;
}

void HostTransport::ask_grant(Flight& flight) {
  const Operation& operation = flight.operation;
  flight.phase = Phase::kAwaitGrant;
  flight.has_asked_grant = true;
  const size_t blocks = operation.remote_blocks.size();
  std::vector<uint32_t> pairs;
  for (size_t first = 0; first < blocks; first += kGrantPairsMax) {
    const size_t count = std::min<size_t>(blocks - first, kGrantPairsMax);
    pairs.clear();
    for (size_t i = first; i < first + count; i++) {
      pairs.push_back(operation.remote_blocks[i]);
      pairs.push_back(operation.remote_generations[i]);
    }
    const HostGrant request{operation.remote_pool, static_cast<uint32_t>(count), first + count == blocks ? 1u : 0u,
                            operation.direction == Direction::kWrite ? 1u : 0u};
    const std::span<const uint8_t> tail(reinterpret_cast<const uint8_t*>(pairs.data()), pairs.size() * sizeof pairs[0]);
    flight.peer->socket.send(HostMessage::kGrant, operation.id, bytes_of(request), tail);
  }
}

void HostTransport::granted(Peer& peer, const HostSocket::Incoming& incoming) {
  const auto found = flights_.find(incoming.header.id);
  int32_t status = 0;
  if (incoming.payload.size() != sizeof status) return;
  std::memcpy(&status, incoming.payload.data(), sizeof status);
  // Of an operation that was cancelled meanwhile: its release is on its way already.
  if (found == flights_.end() || found->second->peer.get() != &peer || found->second->phase != Phase::kAwaitGrant) return;
  if (status == static_cast<int32_t>(Status::kOk)) return set_moving(*found->second);
  // Refused whole; there is nothing to give back.
  found->second->has_asked_grant = false;
  complete(incoming.header.id, static_cast<Status>(status));
}

// What ends an operation for its time alone.
std::optional<Status> HostTransport::overdue(const Flight& flight, uint64_t now) const {
  const uint64_t deadline = flight.operation.deadline_ns;
  if (deadline != 0 && now >= deadline) return Status::kDeadline;
  if (flight.phase == Phase::kMoving) return std::nullopt;
  const uint64_t heard = std::max(flight.peer->heard_ns, flight.submitted_ns);
  if (now > heard + kSilenceNs) return Status::kPeerLost;
  const bool lacks_pool = flight.phase == Phase::kAwaitPool && now > flight.submitted_ns + kSilenceNs;
  return lacks_pool ? std::optional(Status::kNotFound) : std::nullopt;
}

bool HostTransport::run_waiting() {
  if (waiting_ == 0) return false;
  const uint64_t now = now_ns();
  if (now < waiting_scan_ns_) return false;
  waiting_scan_ns_ = now + kWaitingScanNs;
  std::vector<uint64_t> ids;
  for (const auto& [id, flight] : flights_) {
    if (flight->phase != Phase::kMoving) ids.push_back(id);
  }
  const size_t before = waiting_;
  for (const uint64_t id : ids) {
    Flight& flight = *flights_.at(id);
    const std::optional<Status> over = overdue(flight, now);
    if (over.has_value()) {
      complete(id, *over);
    } else if (flight.phase == Phase::kAwaitPool && flight.peer->pools.contains(flight.operation.remote_pool)) {
      start(flight);
    }
  }
  return waiting_ != before;
}

void HostTransport::run_slice() {
  const uint64_t begin = now_ns();
  const uint64_t end = begin + kSliceNs;
  uint64_t now = begin;
  while (!moving_.empty() && now < (completions_.empty() ? end : begin + kTellNs)) {
    std::deque<uint64_t>& turns = moving_.begin()->second;
    if (turns.empty()) {
      moving_.erase(moving_.begin());
      continue;
    }
    const uint64_t id = turns.front();
    turns.pop_front();
    const auto found = flights_.find(id);
    if (found == flights_.end()) continue;
    Flight& flight = *found->second;
    if (flight.ended.has_value()) continue;
    bool is_done = false;
    Status status = Status::kOk;
    do {
      status = flight.move->step(kStepBytes, &is_done);
      now = now_ns();
    } while (status == Status::kOk && !is_done && flight.move->is_ready() && now < end);
    if (status != Status::kOk) {
      complete(id, status);
    } else if (is_done) {
      finish(flight);
    } else if (const std::optional<Status> over = overdue(flight, now); over.has_value()) {
      complete(id, *over);
    } else if (!flight.move->is_ready()) {
      parked_.push_back(id);
    } else {
      turns.push_back(id);
    }
  }
}

// True while there are any: a device tells nobody when it is done.
bool HostTransport::run_parked() {
  if (parked_.empty()) return false;
  const uint64_t now = now_ns();
  std::vector<uint64_t> ids;
  ids.swap(parked_);
  for (const uint64_t id : ids) {
    const auto found = flights_.find(id);
    if (found == flights_.end()) continue;
    Flight& flight = *found->second;
    if (!flight.ended.has_value()) {
      if (const std::optional<Status> over = overdue(flight, now); over.has_value()) complete(id, *over);
      else if (flight.move->is_ready()) moving_[flight.operation.priority].push_back(id);
      else parked_.push_back(id);
    } else if (flight.move->is_quiet()) {
      complete_now(id, *flight.ended);
    } else {
      parked_.push_back(id);
    }
  }
  return true;
}

void HostTransport::finish(Flight& flight) {
  const Operation& operation = flight.operation;
  const std::shared_ptr<Peer> peer = flight.peer;
  const RemotePool& pool = *flight.pool;
  const bool is_checked = pool.table != nullptr && operation.direction == Direction::kRead;
  const Status status = is_checked ? check_after(flight, pool) : Status::kOk;
  const std::vector<uint8_t> notification(operation.notification.begin(), operation.notification.end());
  complete(operation.id, status);
  // After the release: who is told may commit the blocks at once.
  if (status == Status::kOk && !notification.empty()) peer->socket.send(HostMessage::kNotify, 0, notification);
}

void HostTransport::cancel(uint64_t id) {
  if (flights_.contains(id)) complete(id, Status::kCancelled);
}

// Whatever the phase: steps are whole when anybody else runs, so that only a device can still be at its bytes.
void HostTransport::complete(uint64_t id, Status status) {
  Flight& flight = *flights_.at(id);
  if (flight.ended.has_value()) return;
  if (flight.move == nullptr || flight.move->is_quiet()) return complete_now(id, status);
  flight.ended = status;
  parked_.push_back(id);
}

// Nothing of it touches memory any more.
void HostTransport::complete_now(uint64_t id, Status status) {
  const auto found = flights_.find(id);
  const std::unique_ptr<Flight> flight = std::move(found->second);
  flights_.erase(found);
  if (flight->phase != Phase::kMoving) waiting_--;
  if (flight->has_asked_grant && !flight->peer->is_lost) flight->peer->socket.send(HostMessage::kRelease, id, {});
  completions_.push_back({id, status, status == Status::kOk ? flight->bytes : 0});
  flight->move.reset();
  flight->runs.clear();
  if (spare_runs_.size() < kSpareRuns) spare_runs_.push_back(std::move(flight->runs));
}

void HostTransport::complete_all_of(const Peer& peer, Status status, std::optional<uint32_t> pool) {
  std::vector<uint64_t> ids;
  for (const auto& [id, flight] : flights_) {
    if (flight->peer.get() == &peer && (!pool.has_value() || flight->operation.remote_pool == *pool)) ids.push_back(id);
  }
  for (const uint64_t id : ids) complete(id, status);
}

}  // namespace millrace::kv
