// The bytes of parts: messages of them, or gets and puts straight from and to the peer's memory. See ucx_peer.h.
#include <algorithm>

#include "ucx_peer.h"

namespace millrace::kv {
namespace {

// Gets and puts that UCX has of one part; it queues what its devices do not take at once.
constexpr uint32_t kOutstandingMax = 1024;
// Of one get or put.
constexpr uint64_t kStretchBytesMax = uint64_t{1} << 20;
// Gets and puts between two looks at the clock.
constexpr uint32_t kMovesPerLook = 64;

}  // namespace

UcxPeer::RemoteKey* UcxPeer::key_of(uint32_t remote_pool) {
  const auto described = std::find_if(described_.begin(), described_.end(), [&](const auto& pool) { return pool.pool == remote_pool; });
  if (described == described_.end()) return nullptr;
  RemoteKey& key = keys_[remote_pool];
  if (key.packed == described->rkey && key.address == described->address && key.bytes == described->bytes) return &key;
  if (key.rkey != nullptr) old_keys_.push_back(key.rkey);
  key = {nullptr, described->address, described->bytes, described->rkey, false};
  if (key.packed.empty() || shared_.api().rkey_unpack(link_.endpoint(), key.packed.data(), &key.rkey) != kUcsOk) {
    key.rkey = nullptr;
    return &key;
  }
  // Memory that is mapped here, or that a device reaches; all else UCX would do by messages, which we do better.
  void* mapped = nullptr;
  key.is_native = shared_.api().rkey_pointer(key.rkey, key.address, &mapped) == kUcsOk || link_.has_rma_lane();
  return &key;
}

bool UcxPeer::is_direct(uint32_t remote_pool) {
  if (!is_ready_) return false;
  const RemoteKey* const key = key_of(remote_pool);
  return key != nullptr && key->is_native;
}

bool UcxPeer::move(Part& part, uint64_t op, uint64_t until_ns) {
  if (part.flight->is_direct) {
    if (part.phase == Phase::kMoving) return begin_moves(part, until_ns) | finish_direct(part, op);
    return part.phase == Phase::kFlushing && finish_direct(part, op);
  }
  const bool writes = part.flight->operation.direction == Direction::kWrite && part.phase == Phase::kMoving;
  return writes && !part.is_cancel_sent && send_data(part, op);
}

bool UcxPeer::send_data(Part& part, uint64_t op) {
  const Integrity integrity = part.flight->operation.integrity;
  bool has_worked = false;
  while (part.left > 0 && link_.has_room()) {
    std::vector<uint8_t> bytes(std::min<uint64_t>(part.left, kUcxDataBytes));
    part.cursor.gather(bytes.data(), bytes.size());
    part.left -= bytes.size();
    const bool is_checked = integrity == Integrity::kFull || (integrity == Integrity::kSample && part.frames % kSampleBlocks == 0);
    link_.send(UcxKind::kWriteData, op, std::move(bytes), is_checked ? kUcxChecked : 0, part.frames++);
    has_worked = true;
  }
  return has_worked;
}

void UcxPeer::finished(void* request, UcsStatus status, void* user_data) {
  auto& [api, part] = *static_cast<std::pair<const UcxApi*, Part*>*>(user_data);
  api->request_free(request);
  part->outstanding--;
  if (status != kUcsOk) part->failure = status;
}

// Gives UCX gets or puts until it has enough, or it is time for others.
bool UcxPeer::begin_moves(Part& part, uint64_t until_ns) {
  const Operation& operation = part.flight->operation;
  const RemoteKey& key = keys_.at(operation.remote_pool);
  const auto local_memory = shared_.pools.find(operation.local->id);
  const bool reads = operation.direction == Direction::kRead;
  const UcxApi& api = shared_.api();
  UcpRequestParams params{};
  params.attributes = kUcpOpCallback | kUcpOpUserData | kUcpOpMultiSend | kUcpOpMemory;
  params.callback = finished;
  params.user_data = &part.token;
  params.memory = local_memory->second.memory;
  uint8_t* const local = operation.local->address();
  bool has_worked = false;
  for (uint32_t moves = 0; !part.place.at_end() && part.outstanding < kOutstandingMax; moves++) {
    if (part.flight->status != Status::kOk || part.failure != kUcsOk) break;
    if (moves % kMovesPerLook == kMovesPerLook - 1 && shared_.host->now_ns() > until_ns) return true;
    const Stretch stretch = part.place.peek(kStretchBytesMax);
    void* const request =
        reads ? api.get_bytes(link_.endpoint(), local + stretch.target, stretch.length, key.address + stretch.source, key.rkey, &params)
              : api.put(link_.endpoint(), local + stretch.source, stretch.length, key.address + stretch.target, key.rkey, &params);
    if (api.is_error(request)) part.failure = api.error_of(request);
    else if (request != nullptr) part.outstanding++;
    part.place.advance(stretch.length);
    has_worked = true;
    shared_.is_armed = false;
  }
  return has_worked;
}

// A put is done when its memory may be written again, which says nothing of the other side: that, the flush says.
void UcxPeer::flush(Part& part) {
  UcpRequestParams params{};
  params.attributes = kUcpOpCallback | kUcpOpUserData;
  params.callback = finished;
  params.user_data = &part.token;
  void* const request = shared_.api().endpoint_flush(link_.endpoint(), &params);
  part.phase = Phase::kFlushing;
  shared_.is_armed = false;
  if (shared_.api().is_error(request)) part.failure = shared_.api().error_of(request);
  else if (request != nullptr) part.outstanding++;
}

// Once all that was begun is quiet, the peer may be told. True when something has changed.
bool UcxPeer::finish_direct(Part& part, uint64_t op) {
  Flight& flight = *part.flight;
  const bool is_stopped = flight.status != Status::kOk || part.failure != kUcsOk;
  if (part.outstanding != 0 || (!is_stopped && !part.place.at_end())) return false;
  const bool writes = flight.operation.direction == Direction::kWrite;
  if (writes && part.phase == Phase::kMoving && !link_.is_closing() && !link_.has_failed()) {
    flush(part);
    if (part.outstanding != 0) return true;
  }
  if (part.failure != kUcsOk && flight.status == Status::kOk) {
    // An endpoint that failed is the loss of the peer, and that is told by who looks after the link.
    stop(flight, link_.has_failed() || link_.is_closing() ? Status::kPeerLost : Status::kSystem);
  }
  const uint32_t every = check_every(flight.operation.integrity);
  const bool is_checked = every != 0 && flight.status == Status::kOk;
  const uint32_t crc = is_checked ? crc_of_runs(part.runs, flight.operation.local->address(), !writes, every) : 0;
  link_.send(UcxKind::kEnd, op, UcxEnd{flight.status, crc}.encode(), is_checked ? kUcxChecked : 0);
  if (is_checked) part.phase = Phase::kEnding;
  else end_part(op, flight.status);
  return true;
}

}  // namespace millrace::kv
