#include "tcp_peer.h"

#include <algorithm>
#include <utility>

namespace millrace::kv {

TcpPeer::TcpPeer(TcpShared& shared, uint32_t number, TcpAddress address)
    : shared_(shared), number_(number), address_(std::move(address)) {}

TcpPeer::~TcpPeer() = default;

Status TcpPeer::submit(const Operation& operation) {
  if (is_lost_) return Status::kPeerLost;
  if (flights_.size() >= kTcpOperationsMax || note_bytes_ + operation.notification.size() > kTcpQueuedBytesMax) return Status::kFull;
  const size_t count = operation.local_blocks.size();
  if (count == 0 || count != operation.remote_blocks.size() ||
      (!operation.remote_generations.empty() && operation.remote_generations.size() != count) ||
      operation.notification.size() > kNotificationBytesMax || flights_.contains(operation.id))
    return Status::kInvalid;
  // Parts are lowered one by one later; whether the lists are sound is known before anything begins.
  const bool reads = operation.direction == Direction::kRead;
  const Transform& transform = *operation.transform;
  std::string error;
  shared_.runs.clear();
  const Status status = transform.lower((reads ? operation.remote_blocks : operation.local_blocks).data(),
                                        (reads ? operation.local_blocks : operation.remote_blocks).data(),
                                        static_cast<uint32_t>(count), &shared_.runs, &error);
  if (status != Status::kOk) return status;

  auto flight = std::make_unique<Flight>();
  flight->operation = operation;
  flight->sequence = ++sequence_;
  flight->bytes = transform.bytes_per_block() * count;
  flight->is_large = flight->bytes >= kTcpLargeBytes;
  // As many parts as connections, at least, where they are large.
  const uint64_t part_bytes =
      flight->is_large ? std::min(kTcpPartBytes, std::max(kTcpLargeBytes, flight->bytes / shared_.options.streams_large)) : flight->bytes;
  const uint64_t blocks = std::min({part_bytes / transform.bytes_per_block(), kTcpPartRunsMax / transform.runs_per_block(),
                                    uint64_t{kTcpPartBlocksMax}});
  flight->blocks_per_part = static_cast<uint32_t>(std::max<uint64_t>(blocks, 1));
  note_bytes_ += operation.notification.size();
  Flight& kept = *flight;
  flights_.emplace(operation.id, std::move(flight));
  waiting_[kept.is_large].emplace(std::pair{operation.priority, kept.sequence}, &kept);
  feed();
  return Status::kOk;
}

// Asks for parts as long as there is credit.
void TcpPeer::feed() {
  for (auto& waiting : waiting_) {
    while (!waiting.empty()) {
      Flight& flight = *waiting.begin()->second;
      const auto left = static_cast<uint32_t>(flight.operation.local_blocks.size() - flight.asked);
      const uint32_t count = std::min(left, flight.blocks_per_part);
      Stream* const stream = room_for(flight, count * flight.operation.transform->bytes_per_block());
      if (stream == nullptr) break;
      ask(*stream, flight, count);
      if (count == left) waiting.erase(waiting.begin());
    }
  }
}

// The connection with the least to do; opens those for large operations when the first of these comes.
TcpPeer::Stream* TcpPeer::room_for(const Flight& flight, uint64_t bytes) {
  const TcpOptions& options = shared_.options;
  const size_t wanted = options.streams_small + (flight.is_large ? options.streams_large : 0);
  // While the first connects, others would only fail with it.
  if (streams_.empty() || !streams_[0]->is_ready) return nullptr;
  while (streams_.size() < wanted) {
    std::string error;
    if (open_stream(&error) != Status::kOk) break;
  }
  Stream* best = nullptr;
  const bool has_large = flight.is_large && streams_.size() > options.streams_small;
  for (size_t i = has_large ? options.streams_small : 0; i < std::min(wanted, streams_.size()); i++) {
    Stream& stream = *streams_[i];
    if (!stream.is_ready || stream.connection->is_dead() || stream.parts.size() >= stream.credit_parts) continue;
    if (stream.bytes != 0 && stream.bytes + bytes > stream.credit_bytes) continue;
    if (best == nullptr || stream.bytes < best->bytes) best = &stream;
  }
  return best;
}

void TcpPeer::ask(Stream& stream, Flight& flight, uint32_t count) {
  const Operation& operation = flight.operation;
  if (stream.told_layouts.insert(operation.local->id).second) {
    TcpHeader layout;
    layout.kind = TcpKind::kLayout;
    stream.connection->send(layout, TcpLayout::encode(operation.local->id, operation.local->layout()));
  }
  Part part;
  part.flight = &flight;
  part.direction = operation.direction;
  part.first = flight.asked;
  part.count = count;
  part.bytes = count * operation.transform->bytes_per_block();
  part.flow.op = ++stream.last_op;
  part.flow.part = flight.parts++;
  part.flow.integrity = operation.integrity;
  part.flow.left = part.bytes;
  TcpHeader header;
  header.kind = operation.direction == Direction::kRead ? TcpKind::kRead : TcpKind::kWrite;
  header.op = part.flow.op;
  header.part = part.flow.part;
  std::vector<uint8_t> request;
  encode_request(operation.local->id, part.bytes, operation, part.first, part.count, &request);
  stream.connection->send(header, request);
  stream.bytes += part.bytes;
  flight.asked += count;
  flight.open++;
  stream.parts.emplace(header.op, std::move(part));
}

// The place of the part's bytes in our pool.
Status TcpPeer::start(Part& part) {
  if (part.flow.cursor.is_started() || part.flow.is_discarded) return Status::kOk;
  const Operation& operation = part.flight->operation;
  const bool reads = operation.direction == Direction::kRead;
  const uint32_t* const local = operation.local_blocks.data() + part.first;
  const uint32_t* const remote = operation.remote_blocks.data() + part.first;
  std::string error;
  shared_.runs.clear();
  const Status status =
      operation.transform->lower(reads ? remote : local, reads ? local : remote, part.count, &shared_.runs, &error);
  if (status == Status::kOk) part.flow.cursor.start(shared_.runs, operation.local->address(), reads);
  return status;
}

// ---- what comes from the peer

TcpPeer::Stream& TcpPeer::stream_of(const TcpConnection& connection) {
  return **std::find_if(streams_.begin(), streams_.end(), [&](const auto& stream) { return stream->connection.get() == &connection; });
}

Status TcpPeer::frame(TcpConnection& connection, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) {
  Stream& stream = stream_of(connection);
  heard_ns_ = shared_.host->now_ns();
  if (header.kind == TcpKind::kReply && !stream.is_ready) return welcome(stream, payload, why);
  if (header.kind == TcpKind::kHeartbeat && stream.is_ready) return Status::kOk;
  const auto found = stream.parts.find(header.op);
  if (!stream.is_ready || found == stream.parts.end() || found->second.flow.part != header.part) {
    *why = "a frame of kind " + std::to_string(static_cast<int>(header.kind)) + " about no request that is open";
    return Status::kInvalid;
  }
  Part& part = found->second;
  if (header.kind == TcpKind::kGrant && part.direction == Direction::kWrite && !part.is_granted) {
    part.is_granted = true;
    if (!part.is_cancelled) stream.to_send.push_back(header.op);
    connection.kick();
    return Status::kOk;
  }
  TcpDone done;
  if (header.kind != TcpKind::kDone) {
    *why = "a frame of kind " + std::to_string(static_cast<int>(header.kind)) + " where the end of a request or its data are due";
    return Status::kInvalid;
  }
  if (const Status status = TcpDone::decode(payload, &done, why); status != Status::kOk) return status;
  if ((done.status == Status::kOk && part.flow.left != 0) || connection.sending() == &part.flow) {
    *why = "a request has ended with " + std::to_string(part.flow.left) + " bytes left";
    return Status::kInvalid;
  }
  end_part(stream, header.op, done.status);
  feed();
  return Status::kOk;
}

TcpFlow* TcpPeer::data(TcpConnection& connection, const TcpHeader& header, std::string* why) {
  Stream& stream = stream_of(connection);
  heard_ns_ = shared_.host->now_ns();
  const auto found = stream.parts.find(header.op);
  const bool is_due = found != stream.parts.end() && found->second.direction == Direction::kRead &&
                      found->second.flow.part == header.part && (stream.receiving == 0 || stream.receiving == header.op);
  if (!is_due) {
    *why = "data of no read that is open, or out of order";
    return nullptr;
  }
  Part& part = found->second;
  if (start(part) != Status::kOk) {
    *why = "the blocks of an operation have changed while it ran";
    return nullptr;
  }
  stream.receiving = header.op;
  return &part.flow;
}

void TcpPeer::arrived(TcpConnection& connection, TcpFlow& flow, bool is_corrupt) {
  heard_ns_ = shared_.host->now_ns();
  if (!is_corrupt) return;
  Part& part = stream_of(connection).parts.at(flow.op);
  if (part.flight != nullptr) stop(*part.flight, Status::kCorrupt);
}

TcpFlow* TcpPeer::outgoing(TcpConnection& connection) {
  Stream& stream = stream_of(connection);
  while (!stream.to_send.empty()) {
    const uint64_t op = stream.to_send.front();
    Part& part = stream.parts.at(op);
    if (start(part) == Status::kOk) return &part.flow;
    stream.to_send.pop_front();
    stop(*part.flight, Status::kInvalid);
  }
  return nullptr;
}

void TcpPeer::sent(TcpConnection& connection, TcpFlow& flow) {
  Stream& stream = stream_of(connection);
  Part& part = stream.parts.at(flow.op);
  if (flow.left == 0 || part.is_cancelled) std::erase(stream.to_send, flow.op);
  if (part.is_cancelled) cancel_part(stream, part);
}

void TcpPeer::end_part(Stream& stream, uint64_t op, Status status) {
  const auto found = stream.parts.find(op);
  Flight* const flight = found->second.flight;
  const uint64_t bytes = found->second.bytes;
  if (stream.receiving == op) stream.receiving = 0;
  std::erase(stream.to_send, op);
  stream.bytes -= bytes;
  stream.parts.erase(found);
  if (flight == nullptr) return;
  flight->open--;
  if (status == Status::kOk) flight->moved += bytes;
  else if (flight->status == Status::kOk) return stop(*flight, status);
  const bool is_asked = flight->asked == flight->operation.local_blocks.size() || flight->status != Status::kOk;
  if (flight->open == 0 && is_asked) complete(*flight);
}

// ---- ends

void TcpPeer::stop(uint64_t id, Status cause) {
  const auto found = flights_.find(id);
  if (found == flights_.end() || found->second->status != Status::kOk) return;
  stop(*found->second, cause);
  feed();
}

void TcpPeer::stop(Flight& flight, Status cause) {
  flight.status = cause;
  waiting_[flight.is_large].erase({flight.operation.priority, flight.sequence});
  for (const auto& stream : streams_) {
    for (auto& [op, part] : stream->parts) {
      if (part.flight != &flight) continue;
      part.is_cancelled = true;
      if (part.direction == Direction::kRead) {
        part.flow.is_discarded = true;
        part.flight = nullptr;
        flight.open--;
      }
      // A frame that has been begun is sent to its end first.
      if (stream->connection->sending() != &part.flow) cancel_part(*stream, part);
    }
  }
  if (flight.open == 0) complete(flight);
}

void TcpPeer::cancel_part(Stream& stream, Part& part) {
  std::erase(stream.to_send, part.flow.op);
  if (std::exchange(part.is_cancel_sent, true)) return;
  TcpHeader header;
  header.kind = TcpKind::kCancel;
  header.op = part.flow.op;
  header.part = part.flow.part;
  stream.connection->send(header);
}

void TcpPeer::complete(Flight& flight) {
  const uint64_t id = flight.operation.id;
  const std::span<const uint8_t> note = flight.operation.notification;
  note_bytes_ -= note.size();
  if (flight.status == Status::kOk && !note.empty() && !streams_.empty()) {
    TcpHeader header;
    header.kind = TcpKind::kNotify;
    streams_[0]->connection->send(header, note);
  }
  shared_.completions.push_back({id, flight.status, flight.moved});
  flights_.erase(id);
}

Status TcpPeer::notify(std::span<const uint8_t> bytes) {
  if (is_lost_) return Status::kPeerLost;
  if (bytes.size() > kNotificationBytesMax) return Status::kInvalid;
  const bool is_ready = !streams_.empty() && streams_[0]->is_ready;
  const size_t queued = is_ready ? streams_[0]->connection->queued() : 0;
  if (queued + note_bytes_ + bytes.size() > kTcpQueuedBytesMax) return Status::kFull;
  if (!is_ready) {
    notes_.emplace_back(bytes.begin(), bytes.end());
    note_bytes_ += bytes.size();
    return Status::kOk;
  }
  TcpHeader header;
  header.kind = TcpKind::kNotify;
  streams_[0]->connection->send(header, bytes);
  return Status::kOk;
}

void TcpPeer::end(Status status) {
  is_lost_ = true;
  for (const auto& stream : streams_) stream->connection->reset_on_close();
  // What the system has taken of a frame stays with the peer; it counts its blocks in until its end of the connection ends.
  streams_.clear();
  for (auto& waiting : waiting_) waiting.clear();
  notes_.clear();
  note_bytes_ = 0;
  for (const auto& [id, flight] : flights_)
    shared_.completions.push_back({id, flight->status == Status::kOk ? status : flight->status, flight->moved});
  flights_.clear();
}

void TcpPeer::lose(const std::string& why) {
  if (is_lost_) return;
  end(Status::kPeerLost);
  shared_.lost.emplace_back(number_, why);
}

bool TcpPeer::touches(const Pool& pool) const {
  return std::any_of(flights_.begin(), flights_.end(), [&](const auto& entry) { return entry.second->operation.local == &pool; });
}

}  // namespace millrace::kv
