// Requests of peers for our blocks. See tcp_service.h.
#include <algorithm>

#include "tcp_service.h"

namespace millrace::kv {

Status TcpService::frame(TcpConnection& connection, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) {
  Served& served = *served_.at(&connection);
  if (served.session == nullptr) {
    if (header.kind == TcpKind::kHello) return greet(served, payload, why);
    *why = "the first frame must be a hello";
    return Status::kInvalid;
  }
  Session& session = *served.session;
  session.heard_ns = shared_.host->now_ns();
  switch (header.kind) {
    case TcpKind::kLayout: return session.layouts.take(payload, why);
    case TcpKind::kRead:
    case TcpKind::kWrite: return take_request(served, header, payload, why);
    case TcpKind::kCancel: cancel(served, header); return Status::kOk;
    case TcpKind::kHeartbeat: {
      TcpHeader answer;
      answer.kind = TcpKind::kHeartbeat;
      // One that does not read its answers gets no more of them.
      if (connection.queued() < kTcpQueuedBytesMax) connection.send(answer);
      return Status::kOk;
    }
    case TcpKind::kNotify:
      notified(session, payload);
      if (session.held.size() <= kTcpHeldNotesMax && session.held_bytes <= kTcpHeldBytesMax) return Status::kOk;
      *why = "too many notifications of an agent that was not added here";
      return Status::kFull;
    default: *why = "a frame of kind " + std::to_string(static_cast<int>(header.kind)) + " is not for a responder"; return Status::kInvalid;
  }
}

Status TcpService::take_request(Served& served, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) {
  if (header.op <= served.last_op) {
    *why = "op must grow: " + std::to_string(header.op) + " after " + std::to_string(served.last_op);
    return Status::kInvalid;
  }
  if (served.requests.size() >= kTcpPartsMax || served.connection->queued() >= kTcpQueuedBytesMax) {
    *why = "more requests than the credit of " + std::to_string(kTcpPartsMax);
    return Status::kFull;
  }
  served.last_op = header.op;
  Serving serving;
  serving.direction = header.kind == TcpKind::kRead ? Direction::kRead : Direction::kWrite;
  serving.flow.op = header.op;
  serving.flow.part = header.part;
  if (const Status status = TcpRequest::decode(payload, &serving.request, why); status != Status::kOk) return status;
  serving.flow.integrity = serving.request.integrity;
  serving.flow.left = serving.request.bytes;
  serving.status = accept(*served.session, serving, &serving.text);
  if (serving.status != Status::kOk) {
    tell_end(*served.connection, serving);
    return Status::kOk;
  }
  Serving& kept = served.requests.emplace(header.op, std::move(serving)).first->second;
  if (kept.direction == Direction::kRead) {
    served.reads.push_back(header.op);
    served.connection->kick();
    return Status::kOk;
  }
  TcpHeader grant;
  grant.kind = TcpKind::kGrant;
  grant.op = header.op;
  grant.part = header.part;
  served.connection->send(grant);
  return Status::kOk;
}

// Whether this may be done; its blocks are counted in when it may.
Status TcpService::accept(Session& session, Serving& serving, std::string* text) {
  const TcpRequest& request = serving.request;
  const auto found = shared_.pools.find(request.peer_pool);
  if (found == shared_.pools.end()) {
    *text = "pool " + std::to_string(request.peer_pool) + " is not here";
    return Status::kNotFound;
  }
  serving.pool = found->second;
  return session.layouts.accept(*serving.pool, serving.direction, request, &shared_.runs, &serving.transform, &serving.hold, text);
}

void TcpService::cancel(Served& served, const TcpHeader& header) {
  const auto found = served.requests.find(header.op);
  // It has ended already, and the two have crossed.
  if (found == served.requests.end()) return;
  Serving& serving = found->second;
  if (serving.status == Status::kOk) serving.status = Status::kCancelled;
  // A frame that has been begun is sent to its end first.
  if (served.connection->sending() == &serving.flow) return;
  end(served, serving);
}

// The place of the request's bytes in our pool.
Status TcpService::start(Serving& serving) {
  if (serving.flow.cursor.is_started() || serving.flow.is_discarded) return Status::kOk;
  const bool reads = serving.direction == Direction::kRead;
  const TcpRequest& request = serving.request;
  shared_.runs.clear();
  const Status status = serving.transform->lower((reads ? request.peer_blocks : request.own_blocks).data(),
                                                 (reads ? request.own_blocks : request.peer_blocks).data(),
                                                 static_cast<uint32_t>(request.peer_blocks.size()), &shared_.runs, &serving.text);
  if (status == Status::kOk) serving.flow.cursor.start(shared_.runs, serving.pool->address(), !reads);
  return status;
}

// ---- data of reads, out

TcpFlow* TcpService::outgoing(TcpConnection& connection) {
  Served& served = *served_.at(&connection);
  if (served.reads.empty()) return nullptr;
  Serving& serving = served.requests.at(served.reads.front());
  if (start(serving) == Status::kOk) return &serving.flow;
  connection.fail("the blocks of a request have changed while it ran");
  return nullptr;
}

void TcpService::ending(TcpConnection& connection, TcpFlow& flow) {
  tell_end(connection, served_.at(&connection)->requests.at(flow.op));
}

void TcpService::sent(TcpConnection& connection, TcpFlow& flow) {
  Served& served = *served_.at(&connection);
  if (served.session != nullptr) served.session->heard_ns = std::max(served.session->heard_ns, shared_.host->now_ns());
  Serving& serving = served.requests.at(flow.op);
  if (flow.left == 0 || serving.status != Status::kOk) end(served, serving);
}

// ---- data of writes, in

TcpFlow* TcpService::data(TcpConnection& connection, const TcpHeader& header, std::string* why) {
  Served& served = *served_.at(&connection);
  const auto found = served.requests.find(header.op);
  const bool is_due = found != served.requests.end() && found->second.direction == Direction::kWrite &&
                      found->second.flow.part == header.part && (served.receiving == 0 || served.receiving == header.op);
  if (!is_due) {
    *why = "data of no write that was granted, or out of order";
    return nullptr;
  }
  served.session->heard_ns = shared_.host->now_ns();
  if (start(found->second) != Status::kOk) {
    *why = "the blocks of a request have changed while it ran";
    return nullptr;
  }
  served.receiving = header.op;
  return &found->second.flow;
}

void TcpService::arrived(TcpConnection& connection, TcpFlow& flow, bool is_corrupt) {
  Served& served = *served_.at(&connection);
  Serving& serving = served.requests.at(flow.op);
  served.session->heard_ns = shared_.host->now_ns();
  if (is_corrupt) {
    serving.status = Status::kCorrupt;
    serving.text = "the checksum of what arrived differs";
    flow.is_discarded = true;
  }
  if (flow.left == 0) end(served, serving);
}

// ---- ends

void TcpService::tell_end(TcpConnection& connection, Serving& serving) {
  if (std::exchange(serving.is_told, true)) return;
  TcpHeader header;
  header.kind = TcpKind::kDone;
  header.op = serving.flow.op;
  header.part = serving.flow.part;
  connection.send(header, TcpDone{serving.status, serving.text}.encode());
}

void TcpService::end(Served& served, Serving& serving) {
  serving.hold.leave();
  tell_end(*served.connection, serving);
  const uint64_t op = serving.flow.op;
  if (served.receiving == op) served.receiving = 0;
  std::erase(served.reads, op);
  served.requests.erase(op);
}

}  // namespace millrace::kv
