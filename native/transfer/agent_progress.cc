// The progress thread: submissions in, operations to transports, completions out; and between them the life of a transfer:
//
//     posted → (parked: its lease is not granted yet) → waiting for room in a transport → begun → completed
//
// Everything here runs on that one thread.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>

#include "agent_state.h"

namespace millrace::kv {
namespace {

constexpr uint64_t kSleepNsMax = 100'000'000;
// A transport without a descriptor is looked at this often while nothing else happens.
constexpr uint64_t kBlindSleepNs = 1'000'000;
constexpr uint32_t kSubmissionsAtOnce = 256;

MeasuredCost& cost_of(Record& record, int way) {
  return record.peer->costs[way][static_cast<size_t>(record.request.direction)];
}

}  // namespace

void Agent::State::run() {
  uint64_t idle_since = 0;
  while (!is_stopping) {
    if (step()) {
      idle_since = 0;
      continue;
    }
    const uint64_t now = now_ns();
    if (idle_since == 0) idle_since = now;
    if (now - idle_since >= uint64_t{options.spin_us} * 1000) sleep();
  }
  finish();
  is_over.store(true, std::memory_order_release);
}

bool Agent::State::step() {
  bool has_worked = false;
  if (commands_pending.load(std::memory_order_acquire)) {
    has_worked = true;
    std::unique_lock lock(commands_lock);
    while (!commands.empty()) {
      std::function<void()>* const next = commands.front();
      lock.unlock();
      (*next)();
      lock.lock();
      commands.pop_front();
      command_done.notify_all();
    }
    commands_pending.store(false, std::memory_order_relaxed);
  }
  has_worked |= take_submissions();
  has_worked |= take_ports();
  if (cancels_pending.exchange(false, std::memory_order_seq_cst)) take_cancels();
  const uint64_t now = now_ns();
  expire(now);
  for (size_t way = 0; way < transports.size(); way++) {
    if (!transports[way]->waiting.empty()) submit_waiting(*transports[way]);
    has_worked |= progress(static_cast<int>(way));
  }
  take_lost();
  has_worked |= flush_outbox();
  tend_leases(now);
  flush_events();
  return has_worked;
}

void Agent::State::sleep() {
  is_sleeping.exchange(true, std::memory_order_seq_cst);
  // What came before the exchange is seen here; who comes after it sees that we sleep.
  if (!submissions->empty() || commands_pending.load(std::memory_order_seq_cst) ||
      cancels_pending.load(std::memory_order_seq_cst) || !ports_may_sleep()) {
    is_sleeping.store(false, std::memory_order_relaxed);
    ports_awake();
    return;
  }
  const uint64_t now = now_ns();
  uint64_t until = now + kSleepNsMax;
  if (!deadlines.empty()) until = std::min(until, deadlines.begin()->first);
  if (!held.empty()) until = std::min(until, next_heartbeat_ns);
  if (next_lease_check_ns != 0) until = std::min(until, next_lease_check_ns);
  bool is_blind = options.now_ns != nullptr || !outbox.empty();
  for (const auto& way : transports) is_blind = is_blind || way->descriptor < 0 || !way->waiting.empty();
  if (is_blind) until = std::min(until, now + kBlindSleepNs);
  const uint64_t wait_ns = until > now ? until - now : 0;
  epoll_event ready[kTransportsMax + 1];
  const int count = epoll_wait(epoll, ready, kTransportsMax + 1, static_cast<int>((wait_ns + 999'999) / 1'000'000));
  is_sleeping.store(false, std::memory_order_relaxed);
  ports_awake();
  uint64_t wakes;
  // Transports empty their own descriptors.
  if (count > 0) [[maybe_unused]] const ssize_t taken = read(wake_descriptor, &wakes, sizeof(wakes));
}

bool Agent::State::take_submissions() {
  Submission next;
  uint32_t taken = 0;
  for (; taken < kSubmissionsAtOnce && submissions->pop(&next); taken++) {
    if (next.note != nullptr) {
      send(next.note->peer, std::move(next.note->bytes));
      continue;
    }
    begin(next.slot);
  }
  return taken > 0;
}

// The first that the progress thread sees of a transfer.
void Agent::State::begin(uint32_t slot) {
  Record& record = records[slot];
  const TransferRequest& request = record.request;
  active.insert(slot);
  record.stage = Stage::kPosted;
  record.sequence = next_sequence++;
  record.way = -1;
  record.tried = 0;
  record.cause = Status::kOk;
  record.begun_ns = 0;
  record.uses_lease = false;
  Operation& operation = record.operation;
  operation.direction = request.direction;
  operation.integrity = request.integrity;
  operation.reader = request.reader;
  operation.priority = request.priority;
  operation.local = record.pool->pool.get();
  operation.remote_pool = request.remote_pool;
  const PoolDescription* const remote = record.peer->pool(request.remote_pool);
  operation.remote_kind = remote == nullptr ? MemoryKind::kHost : remote->kind;
  operation.part = request.part;
  operation.remote_blocks = request.remote_blocks;
  operation.local_blocks = request.local_blocks;
  operation.remote_generations = request.remote_generations;
  operation.notification = request.notification;
  operation.deadline_ns = request.deadline_ns;
  if (is_stopping) return complete(slot, Status::kClosed, 0);
  if ((record.word.load(std::memory_order_seq_cst) & 1) != 0) return complete(slot, Status::kCancelled, 0);
  if (request.deadline_ns != 0) {
    if (request.deadline_ns <= now_ns()) return complete(slot, Status::kDeadline, 0);
    deadlines.insert({request.deadline_ns, slot});
  }
  if (const Status status = record.peer->state.load(std::memory_order_relaxed); status != Status::kOk)
    return complete(slot, status, 0);
  const Status leased = request.lease == 0 ? Status::kOk : use_lease(slot);
  if (leased == Status::kBusy) record.stage = Stage::kParked;
  else if (leased != Status::kOk) complete(slot, leased, 0);
  else choose(slot);
}

// Puts the transfer among those that wait for the cheapest transport that has not refused it.
void Agent::State::choose(uint32_t slot) {
  Record& record = records[slot];
  const uint32_t ways = record.peer->ways.load(std::memory_order_relaxed) & ~record.tried;
  const uint64_t bytes = record.operation.transform->bytes_per_block() * record.operation.local_blocks.size();
  const uint32_t kinds = 1u << static_cast<uint32_t>(record.operation.local->kind()) |
                         1u << static_cast<uint32_t>(record.operation.remote_kind);
  bool lacks_kind = false;
  const uint64_t now = now_ns();
  uint64_t least = UINT64_MAX;
  record.way = -1;
  for (size_t way = 0; way < transports.size(); way++) {
    if ((ways >> way & 1) == 0) continue;
    if (!record.request.transport.empty() && record.request.transport != transports[way]->name) continue;
    if ((kinds & ~transports[way]->transport->info().memory_kinds) != 0) {
      lacks_kind = true;
      continue;
    }
    const Cost said = transports[way]->transport->cost(record.peer->id, record.operation, bytes);
    const Cost cost = cost_of(record, static_cast<int>(way)).expected(said, now);
    const double seconds = static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(cost.bytes_per_second, 1));
    const uint64_t total = cost.latency_ns + static_cast<uint64_t>(std::min(seconds * 1e9, 9e18));
    if (total >= least) continue;
    least = total;
    record.way = static_cast<int>(way);
  }
  if (record.way < 0) return complete(slot, record.tried != 0 || lacks_kind ? Status::kUnsupported : Status::kPeerLost, 0);
  record.stage = Stage::kWaiting;
  transports[record.way]->waiting.insert({{record.request.priority, record.sequence}, slot});
}

void Agent::State::submit_waiting(TransportState& way) {
  while (!way.waiting.empty()) {
    const uint32_t slot = way.waiting.begin()->second;
    Record& record = records[slot];
    record.begun_ns = now_ns();
    const Status status = way.transport->submit(record.peer->id, record.operation);
    if (status == Status::kFull) {
      way.counters.refused_full.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    way.waiting.erase(way.waiting.begin());
    if (status == Status::kOk) {
      record.stage = Stage::kBegun;
      record.is_alone = cost_of(record, record.way).begin();
      way.begun++;
      way.counters.submitted.fetch_add(1, std::memory_order_relaxed);
    } else if (status == Status::kUnsupported) {
      record.stage = Stage::kPosted;
      record.tried |= 1u << record.way;
      choose(slot);
    } else {
      record.stage = Stage::kPosted;
      complete(slot, status, 0);
    }
  }
}

void Agent::State::forget_waiting(uint32_t slot) {
  const Record& record = records[slot];
  if (record.stage == Stage::kWaiting)
    transports[record.way]->waiting.erase({{record.request.priority, record.sequence}, slot});
}

// Ends a transfer early for `cause`; where its bytes may move, when the transport says that they do not any more.
void Agent::State::stop_transfer(uint32_t slot, Status cause) {
  Record& record = records[slot];
  if (record.stage != Stage::kBegun) return complete(slot, cause, 0);
  if (record.cause != Status::kOk) return;
  record.cause = cause;
  transports[record.way]->transport->cancel(record.operation.id);
}

void Agent::State::take_cancels() {
  std::vector<uint32_t> cancelled;
  for (const uint32_t slot : active)
    if ((records[slot].word.load(std::memory_order_seq_cst) & 1) != 0) cancelled.push_back(slot);
  for (const uint32_t slot : cancelled) stop_transfer(slot, Status::kCancelled);
}

void Agent::State::expire(uint64_t now) {
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    const uint32_t slot = deadlines.begin()->second;
    deadlines.erase(deadlines.begin());
    stop_transfer(slot, Status::kDeadline);
  }
}

bool Agent::State::progress(int way) {
  TransportState& it = *transports[way];
  completions.clear();
  progressing = way;
  const bool has_worked = it.transport->progress(&completions);
  progressing = -1;
  for (const Completion& completion : completions) {
    const auto slot = static_cast<uint32_t>(completion.id & (kOperationsMost - 1));
    Record& record = records[slot];
    // Exactly once, by contract: anything else would free blocks under an operation.
    if (slot >= operations_max || record.stage != Stage::kBegun || record.operation.id != completion.id) std::abort();
    it.begun--;
    const bool was_stopped = completion.status == Status::kCancelled && record.cause != Status::kOk;
    complete(slot, was_stopped ? record.cause : completion.status, completion.bytes);
  }
  return has_worked || !completions.empty();
}

void Agent::State::complete(uint32_t slot, Status status, uint64_t bytes) {
  Record& record = records[slot];
  forget_waiting(slot);
  if (record.request.deadline_ns != 0) deadlines.erase({record.request.deadline_ns, slot});
  if (record.uses_lease) unuse_lease(record);
  Event event;
  event.status = status;
  event.id = record.operation.id;
  event.peer = record.peer->id;
  event.bytes = bytes;
  event.posted_ns = record.posted_ns;
  event.done_ns = now_ns();
  if (record.stage == Stage::kBegun) {
    TransportState& way = *transports[record.way];
    TransportCounters& counters = way.counters;
    event.begun_ns = record.begun_ns;
    event.transport = way.name.c_str();
    (status == Status::kOk ? counters.done : counters.failed).fetch_add(1, std::memory_order_relaxed);
    auto& moved = record.request.direction == Direction::kRead ? counters.bytes_read : counters.bytes_written;
    moved.fetch_add(bytes, std::memory_order_relaxed);
    const uint64_t whole = status == Status::kOk ? bytes : 0;
    cost_of(record, record.way).end(record.begun_ns, event.done_ns, whole, record.is_alone);
    counters.active_ns.fetch_add(event.done_ns - record.begun_ns, std::memory_order_relaxed);
  }
  record.hold.leave();
  record.pool->unuse();
  // Told before the record is cleared, which takes longer than to tell.
  Port* const port = std::exchange(record.port, nullptr);
  if (port != nullptr) port->complete(record.port_tag, event, {});
  record.pool.reset();
  record.peer.reset();
  record.operation = {};
  record.request = {};
  record.stage = Stage::kFree;
  record.word.store(0, std::memory_order_seq_cst);
  active.erase(slot);
  transfers_active.fetch_sub(1, std::memory_order_relaxed);
  if (port == nullptr) publish(std::move(event));
  else free_slots->push(slot);
}

void Agent::State::take_lost() {
  while (!lost.empty()) {
    const Loss loss = std::move(lost.back());
    lost.pop_back();
    lose(loss.peer, loss.way, loss.why);
  }
}

// One transport does not reach the peer any more. What waits for it goes another way, if there is one.
void Agent::State::lose(uint32_t peer_id, int way, const std::string& why) {
  const std::shared_ptr<const Tables> now = tables();
  const auto found = now->peers.find(peer_id);
  if (found == now->peers.end()) return;
  Peer& peer = *found->second;
  const uint32_t bit = 1u << way;
  if ((peer.ways.fetch_and(~bit, std::memory_order_relaxed) & bit) == 0) return;
  transports[way]->transport->remove_peer(peer_id);
  if (peer.ways.load(std::memory_order_relaxed) == 0) {
    peers_lost.fetch_add(1, std::memory_order_relaxed);
    peer.state.store(Status::kPeerLost, std::memory_order_release);
    fail_peer(peer_id, Status::kPeerLost);
    Event event;
    event.kind = EventKind::kPeerLost;
    event.status = Status::kPeerLost;
    event.peer = peer_id;
    event.done_ns = now_ns();
    event.transport = transports[way]->name.c_str();
    event.notification.assign(why.begin(), why.end());
    publish(std::move(event));
    return;
  }
  std::vector<uint32_t> moved;
  for (const uint32_t slot : active)
    if (records[slot].stage == Stage::kWaiting && records[slot].way == way && records[slot].peer->id == peer_id)
      moved.push_back(slot);
  for (const uint32_t slot : moved) {
    forget_waiting(slot);
    records[slot].stage = Stage::kPosted;
    choose(slot);
  }
}

// Everything of a peer that is no more ends for `cause`.
void Agent::State::fail_peer(uint32_t peer, Status cause) {
  std::vector<uint32_t> failed;
  for (const uint32_t slot : active)
    if (records[slot].peer->id == peer) failed.push_back(slot);
  for (const uint32_t slot : failed) {
    Record& record = records[slot];
    // Its transport has been told already that the peer is gone, and completes it.
    if (record.stage == Stage::kBegun) {
      if (record.cause == Status::kOk) record.cause = cause;
    } else {
      complete(slot, cause, 0);
    }
  }
  const auto unsent = outbox.find(peer);
  if (unsent != outbox.end()) {
    for (const std::vector<uint8_t>& bytes : unsent->second)
      if (bytes[0] == static_cast<uint8_t>(Envelope::kCaller)) notes_pending.fetch_sub(1, std::memory_order_relaxed);
    outbox.erase(unsent);
  }
  leases_of_lost(peer);
}

// Nobody submits any more. Cancels what there is, waits for its bytes to be quiet, and ends the transports; by their own
// promise they touch nothing after that.
void Agent::State::finish() {
  while (take_submissions()) {
  }
  const std::vector<uint32_t> all(active.begin(), active.end());
  for (const uint32_t slot : all) stop_transfer(slot, Status::kClosed);
  // By the real clock: the caller's may stand still.
  timespec begin;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (timespec now = begin; !active.empty(); clock_gettime(CLOCK_MONOTONIC, &now)) {
    if (static_cast<uint64_t>(now.tv_sec - begin.tv_sec) * 1'000'000'000 > kCloseNs) break;
    bool has_worked = false;
    for (size_t way = 0; way < transports.size(); way++) has_worked |= progress(static_cast<int>(way));
    epoll_event ready;
    if (!has_worked) epoll_wait(epoll, &ready, 1, 1);
  }
  flush_outbox();
  for (const auto& way : transports) {
    way->waiting.clear();
    way->transport.reset();
  }
  const std::vector<uint32_t> rest(active.begin(), active.end());
  for (const uint32_t slot : rest) complete(slot, Status::kClosed, 0);
  while (!ports.empty()) end_port(ports.size() - 1);
}

}  // namespace millrace::kv
