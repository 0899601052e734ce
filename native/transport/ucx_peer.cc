// Operations that are submitted to one peer: their parts, what comes of them, and their ends. Moving bytes is in
// ucx_peer_moves.cc. See ucx_peer.h.
#include "ucx_peer.h"

#include <algorithm>
#include <utility>

namespace millrace::kv {
namespace {

// Requests open at once: enough to hide a round trip, few enough that a more urgent operation need not wait long.
constexpr size_t kPartsOpen = 4;
constexpr uint64_t kDirectPartBytes = 8u << 20;
// Whose bytes are compared, or copied by both sides.
constexpr uint64_t kPartBytes = 1u << 20;

}  // namespace

void UcxPeer::release_keys() {
  for (const auto& [pool, key] : keys_)
    if (key.rkey != nullptr) shared_.api().rkey_destroy(key.rkey);
  for (void* rkey : old_keys_) shared_.api().rkey_destroy(rkey);
  keys_.clear();
  old_keys_.clear();
}

Status UcxPeer::submit(const Operation& operation) {
  if (is_ended_) return Status::kPeerLost;
  if (flights_.size() >= kUcxOperationsMax || note_bytes_ + operation.notification.size() > kUcxQueuedBytesMax) return Status::kFull;
  const size_t count = operation.local_blocks.size();
  if (count == 0 || count != operation.remote_blocks.size() || operation.transform == nullptr ||
      (!operation.remote_generations.empty() && operation.remote_generations.size() != count) ||
      operation.notification.size() > kNotificationBytesMax || flights_.contains(operation.id))
    return Status::kInvalid;
  // Parts are lowered one by one later; whether the lists are sound is known before anything begins.
  const bool reads = operation.direction == Direction::kRead;
  std::string error;
  shared_.runs.clear();
  const Status status = operation.transform->lower((reads ? operation.remote_blocks : operation.local_blocks).data(),
                                                   (reads ? operation.local_blocks : operation.remote_blocks).data(),
                                                   static_cast<uint32_t>(count), &shared_.runs, &error);
  if (status != Status::kOk) return status;
  auto flight = std::make_unique<Flight>();
  flight->operation = operation;
  flight->sequence = ++sequence_;
  note_bytes_ += operation.notification.size();
  waiting_.emplace(std::pair{operation.priority, flight->sequence}, flight.get());
  flights_.emplace(operation.id, std::move(flight));
  shared_.is_armed = false;
  return Status::kOk;
}

// Asks for parts as long as few are open.
void UcxPeer::feed() {
  while (is_ready_ && !waiting_.empty() && parts_.size() < kPartsOpen) {
    Flight& flight = *waiting_.begin()->second;
    const Operation& operation = flight.operation;
    if (flight.asked == 0) {
      flight.is_direct = is_direct(operation.remote_pool);
      const uint64_t part_bytes = flight.is_direct && operation.integrity == Integrity::kOff ? kDirectPartBytes : kPartBytes;
      const uint64_t blocks = std::min({part_bytes / operation.transform->bytes_per_block(),
                                        kTcpPartRunsMax / operation.transform->runs_per_block(), uint64_t{kTcpPartBlocksMax}});
      flight.blocks_per_part = static_cast<uint32_t>(std::max<uint64_t>(blocks, 1));
    }
    const auto left = static_cast<uint32_t>(operation.local_blocks.size() - flight.asked);
    const uint32_t count = std::min(left, flight.blocks_per_part);
    ask(flight, count);
    if (count == left) waiting_.erase(waiting_.begin());
  }
}

void UcxPeer::ask(Flight& flight, uint32_t count) {
  const Operation& operation = flight.operation;
  if (told_layouts_.insert(operation.local->id).second)
    link_.send(UcxKind::kLayout, 0, TcpLayout::encode(operation.local->id, operation.local->layout()));
  const uint64_t op = ++last_op_;
  Part& part = parts_[op];
  part.token = {&shared_.api(), &part};
  part.flight = &flight;
  part.first = flight.asked;
  part.count = count;
  part.bytes = part.left = count * operation.transform->bytes_per_block();
  std::vector<uint8_t> request;
  encode_request(operation.local->id, part.bytes, operation, part.first, count, &request);
  link_.send(operation.direction == Direction::kRead ? UcxKind::kRead : UcxKind::kWrite, op, std::move(request),
             flight.is_direct ? kUcxDirect : 0);
  flight.asked += count;
  flight.open++;
}

// Of the part, into shared_.runs.
Status UcxPeer::lower(const Part& part, std::string* error) {
  const Operation& operation = part.flight->operation;
  const bool reads = operation.direction == Direction::kRead;
  const uint32_t* const local = operation.local_blocks.data() + part.first;
  const uint32_t* const remote = operation.remote_blocks.data() + part.first;
  shared_.runs.clear();
  return operation.transform->lower(reads ? remote : local, reads ? local : remote, part.count, &shared_.runs, error);
}

// ---- what comes from the peer

Status UcxPeer::frame(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  if (header.op == 0 || header.op > last_op_) {
    *why = "a message about a request that was never made";
    return Status::kInvalid;
  }
  const auto found = parts_.find(header.op);
  // Given up meanwhile.
  if (found == parts_.end()) return Status::kOk;
  Part& part = found->second;
  switch (header.kind) {
    case UcxKind::kGrant: return granted(part, why);
    case UcxKind::kData: return data(part, header, payload, why);
    default: break;
  }
  TcpDone done;
  if (const Status status = TcpDone::decode(payload, &done, why); status != Status::kOk) return status;
  const bool moves = part.flight->is_direct && (part.phase == Phase::kMoving || part.phase == Phase::kFlushing);
  const bool is_whole = part.flight->is_direct ? part.phase == Phase::kEnding : part.left == 0;
  if (moves || (done.status == Status::kOk && !is_whole)) {
    *why = "a request has ended before its bytes were there";
    return Status::kInvalid;
  }
  end_part(header.op, done.status);
  return Status::kOk;
}

Status UcxPeer::granted(Part& part, std::string* why) {
  const Operation& operation = part.flight->operation;
  const bool reads = operation.direction == Direction::kRead;
  if (part.phase != Phase::kAsked || (reads && !part.flight->is_direct)) {
    *why = "a grant that nobody waits for";
    return Status::kInvalid;
  }
  std::string error;
  Status status = lower(part, &error);
  if (status == Status::kOk && part.flight->is_direct) {
    const RemoteKey& key = *key_of(operation.remote_pool);
    uint64_t bytes = 0;
    status = measure_runs(shared_.runs, reads ? key.bytes : operation.local->bytes(), reads ? operation.local->bytes() : key.bytes,
                          &bytes, &error);
    part.runs.swap(shared_.runs);
    part.place = RunCursor(part.runs);
  } else if (status == Status::kOk) {
    part.cursor.start(shared_.runs, operation.local->address(), false);
  }
  // A part of kAsked can be given up at once.
  if (status != Status::kOk) stop(*part.flight, status);
  else part.phase = Phase::kMoving;
  return Status::kOk;
}

Status UcxPeer::data(Part& part, const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  const Operation& operation = part.flight->operation;
  const bool needs_check = operation.integrity == Integrity::kFull ||
                           (operation.integrity == Integrity::kSample && part.frames % kSampleBlocks == 0);
  const bool is_due = operation.direction == Direction::kRead && !part.flight->is_direct && header.frame == part.frames &&
                      !payload.empty() && payload.size() <= part.left && (!needs_check || (header.flags & kUcxChecked) != 0);
  if (!is_due) {
    *why = "data of no read that is open, out of order, or without their checksum";
    return Status::kInvalid;
  }
  if (part.frames++ == 0) {
    if (const Status status = lower(part, why); status != Status::kOk) return status;
    part.cursor.start(shared_.runs, operation.local->address(), true);
  }
  part.cursor.scatter(payload.data(), payload.size());
  part.left -= payload.size();
  return Status::kOk;
}

void UcxPeer::corrupt(uint64_t op) {
  const auto found = parts_.find(op);
  if (found != parts_.end() && found->second.flight->status == Status::kOk) stop(*found->second.flight, Status::kCorrupt);
}

// ---- ends

void UcxPeer::end_part(uint64_t op, Status status) {
  const auto found = parts_.find(op);
  Flight& flight = *found->second.flight;
  const uint64_t bytes = found->second.bytes;
  parts_.erase(found);
  flight.open--;
  if (status == Status::kOk) flight.moved += bytes;
  else if (flight.status == Status::kOk) return stop(flight, status);
  if (flight.open == 0 && (flight.asked == flight.operation.local_blocks.size() || flight.status != Status::kOk)) complete(flight);
}

void UcxPeer::stop(uint64_t id, Status cause) {
  const auto found = flights_.find(id);
  if (found != flights_.end() && found->second->status == Status::kOk) stop(*found->second, cause);
}

void UcxPeer::stop(Flight& flight, Status cause) {
  flight.status = cause;
  waiting_.erase({flight.operation.priority, flight.sequence});
  shared_.is_armed = false;
  for (auto entry = parts_.begin(); entry != parts_.end();) {
    auto& [op, part] = *entry;
    const bool moves = part.phase == Phase::kMoving || part.phase == Phase::kFlushing;
    if (part.flight != &flight || (flight.is_direct && moves)) {
      ++entry;
      continue;
    }
    if (!std::exchange(part.is_cancel_sent, true)) link_.send(UcxKind::kCancel, op, {});
    // Of a write whose bytes are on their way, the peer says when it writes no more.
    if (moves && !is_ended_) {
      ++entry;
      continue;
    }
    entry = parts_.erase(entry);
    flight.open--;
  }
  if (flight.open == 0) complete(flight);
}

void UcxPeer::complete(Flight& flight) {
  const uint64_t id = flight.operation.id;
  const std::span<const uint8_t> note = flight.operation.notification;
  note_bytes_ -= note.size();
  if (flight.status == Status::kOk && !note.empty()) link_.send(UcxKind::kNotify, 0, {note.begin(), note.end()});
  shared_.completions.push_back({id, flight.status, flight.moved});
  flights_.erase(id);
}

Status UcxPeer::notify(std::span<const uint8_t> bytes) {
  if (is_ended_) return Status::kPeerLost;
  if (bytes.size() > kNotificationBytesMax) return Status::kInvalid;
  if (link_.queued_bytes() + note_bytes_ + bytes.size() > kUcxQueuedBytesMax) return Status::kFull;
  if (is_ready_) {
    link_.send(UcxKind::kNotify, 0, {bytes.begin(), bytes.end()});
    return Status::kOk;
  }
  notes_.emplace_back(bytes.begin(), bytes.end());
  note_bytes_ += bytes.size();
  return Status::kOk;
}

void UcxPeer::end(Status status) {
  is_ended_ = true;
  notes_.clear();
  waiting_.clear();
  std::vector<Flight*> all;
  for (const auto& [id, flight] : flights_) all.push_back(flight.get());
  for (Flight* flight : all) stop(*flight, flight->status == Status::kOk ? status : flight->status);
}

bool UcxPeer::touches(const Pool& pool) const {
  return std::any_of(flights_.begin(), flights_.end(), [&](const auto& entry) { return entry.second->operation.local == &pool; });
}

bool UcxPeer::is_moving() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const auto& entry) {
    return entry.second.phase == Phase::kMoving || entry.second.phase == Phase::kFlushing;
  });
}

bool UcxPeer::work(uint64_t until_ns) {
  bool has_worked = false;
  if (is_ready_ && !notes_.empty()) {
    for (std::vector<uint8_t>& bytes : std::exchange(notes_, {})) {
      note_bytes_ -= bytes.size();
      link_.send(UcxKind::kNotify, 0, std::move(bytes));
    }
    has_worked = true;
  }
  feed();
  // Parts may go while one is looked at.
  for (auto entry = parts_.begin(); entry != parts_.end();) {
    const uint64_t op = entry->first;
    has_worked |= move(entry->second, op, until_ns);
    entry = parts_.upper_bound(op);
  }
  return has_worked;
}

}  // namespace millrace::kv
