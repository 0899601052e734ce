// Requests of one peer for our blocks. See ucx_service.h.
#include "ucx_service.h"

#include <algorithm>
#include <utility>

#include "copy.h"

namespace millrace::kv {

Status UcxService::frame(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  switch (header.kind) {
    case UcxKind::kLayout: return layouts_.take(payload, why);
    case UcxKind::kRead:
    case UcxKind::kWrite: return take_request(header, payload, why);
    case UcxKind::kWriteData: return take_data(header, payload, why);
    case UcxKind::kEnd: return take_end(header, payload, why);
    case UcxKind::kCancel:
      // It may have ended already, and the two have crossed.
      if (requests_.contains(header.op)) finish(header.op, Status::kCancelled, "");
      return Status::kOk;
    default: *why = "a message of kind " + std::to_string(static_cast<int>(header.kind)) + " is not for a responder"; return Status::kInvalid;
  }
}

Status UcxService::take_request(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  if (header.op <= last_op_) {
    *why = "op must grow: " + std::to_string(header.op) + " after " + std::to_string(last_op_);
    return Status::kInvalid;
  }
  if (requests_.size() >= kTcpPartsMax || link_.queued_bytes() >= kUcxQueuedBytesMax) {
    *why = "more requests than " + std::to_string(kTcpPartsMax);
    return Status::kFull;
  }
  last_op_ = header.op;
  Serving& serving = requests_[header.op];
  serving.direction = header.kind == UcxKind::kRead ? Direction::kRead : Direction::kWrite;
  serving.is_direct = (header.flags & kUcxDirect) != 0;
  if (const Status status = TcpRequest::decode(payload, &serving.request, why); status != Status::kOk) return status;
  std::string text;
  if (const Status status = accept(serving, &text); status != Status::kOk) {
    finish(header.op, status, text);
    return Status::kOk;
  }
  const bool reads = serving.direction == Direction::kRead;
  if (serving.is_direct || !reads) link_.send(UcxKind::kGrant, header.op, {});
  else reads_.push_back(header.op);
  return Status::kOk;
}

// Whether this may be done; its blocks are counted in when it may.
Status UcxService::accept(Serving& serving, std::string* text) {
  const TcpRequest& request = serving.request;
  const auto found = shared_.pools.find(request.peer_pool);
  if (found == shared_.pools.end()) {
    *text = "pool " + std::to_string(request.peer_pool) + " is not here";
    return Status::kNotFound;
  }
  serving.pool = found->second.pool;
  serving.left = request.bytes;
  const Status status = layouts_.accept(*serving.pool, serving.direction, request, &shared_.runs, &serving.transform, &serving.hold, text);
  if (status != Status::kOk) return status;
  if (serving.is_direct) serving.runs.swap(shared_.runs);
  else serving.cursor.start(shared_.runs, serving.pool->address(), serving.direction == Direction::kWrite);
  return Status::kOk;
}

Status UcxService::take_data(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  const auto found = requests_.find(header.op);
  // Of a request that was refused or cancelled; its data cross the answer.
  if (found == requests_.end() && header.op != 0 && header.op <= last_op_) return Status::kOk;
  const bool is_write = found != requests_.end() && found->second.direction == Direction::kWrite && !found->second.is_direct;
  if (!is_write || header.frame != found->second.frames || payload.empty() || payload.size() > found->second.left) {
    *why = "data of no write that was granted, or out of order";
    return Status::kInvalid;
  }
  Serving& serving = found->second;
  const Integrity integrity = serving.request.integrity;
  const bool needs_check = integrity == Integrity::kFull || (integrity == Integrity::kSample && serving.frames % kSampleBlocks == 0);
  if (needs_check && (header.flags & kUcxChecked) == 0) {
    *why = "data without the checksum that the request asked for";
    return Status::kInvalid;
  }
  serving.frames++;
  serving.cursor.scatter(payload.data(), payload.size());
  serving.left -= payload.size();
  if (serving.left == 0) finish(header.op, Status::kOk, "");
  return Status::kOk;
}

Status UcxService::take_end(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  const auto found = requests_.find(header.op);
  UcxEnd end;
  if (const Status status = UcxEnd::decode(payload, &end, why); status != Status::kOk) return status;
  // The peer was lost to us meanwhile and all of it released.
  if (found == requests_.end() && header.op != 0 && header.op <= last_op_) return Status::kOk;
  if (found == requests_.end() || !found->second.is_direct) {
    *why = "the end of a direct request that was not granted";
    return Status::kInvalid;
  }
  Serving& serving = found->second;
  if ((header.flags & kUcxChecked) == 0) {
    requests_.erase(found);
    return Status::kOk;
  }
  const uint32_t every = check_every(serving.request.integrity);
  const bool is_same = crc_of_runs(serving.runs, serving.pool->address(), serving.direction == Direction::kWrite, every) == end.crc;
  finish(header.op, is_same ? Status::kOk : Status::kCorrupt, is_same ? "" : "the checksum of what was moved differs");
  return Status::kOk;
}

bool UcxService::work() {
  bool has_worked = false;
  while (!reads_.empty() && link_.has_room()) {
    const uint64_t op = reads_.front();
    Serving& serving = requests_.at(op);
    const Integrity integrity = serving.request.integrity;
    std::vector<uint8_t> bytes(std::min<uint64_t>(serving.left, kUcxDataBytes));
    serving.cursor.gather(bytes.data(), bytes.size());
    serving.left -= bytes.size();
    const bool is_checked = integrity == Integrity::kFull || (integrity == Integrity::kSample && serving.frames % kSampleBlocks == 0);
    link_.send(UcxKind::kData, op, std::move(bytes), is_checked ? kUcxChecked : 0, serving.frames++);
    has_worked = true;
    if (serving.left == 0) finish(op, Status::kOk, "");
  }
  return has_worked;
}

void UcxService::corrupt(uint64_t op) {
  if (requests_.contains(op)) finish(op, Status::kCorrupt, "the checksum of what arrived differs");
}

// What we copy has been copied when this is called, as messages are copies.
void UcxService::finish(uint64_t op, Status status, const std::string& text) {
  std::erase(reads_, op);
  requests_.erase(op);
  link_.send(UcxKind::kDone, op, TcpDone{status, text}.encode());
}

void UcxService::end() {
  reads_.clear();
  std::erase_if(requests_, [](const auto& entry) { return !entry.second.is_direct; });
}

void UcxService::release_all() {
  reads_.clear();
  requests_.clear();
}

bool UcxService::touches(const Pool& pool) const {
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& entry) { return entry.second.pool == &pool; });
}

}  // namespace millrace::kv
