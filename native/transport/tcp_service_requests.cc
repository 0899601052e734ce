// Requests of peers for our blocks. See tcp_service.h.
#include <algorithm>

#include "tcp_service.h"

namespace millrace::kv {
namespace {

constexpr size_t kTransformsMax = 64;

bool same(const Part& a, const Part& b) {
  return a.first_layer == b.first_layer && a.layers == b.layers && a.first_head == b.first_head && a.heads == b.heads;
}

}  // namespace

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
    case TcpKind::kLayout: return take_layout(session, payload, why);
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

Status TcpService::take_layout(Session& session, std::span<const uint8_t> payload, std::string* why) {
  TcpLayout told;
  if (const Status status = TcpLayout::decode(payload, &told, why); status != Status::kOk) return status;
  if (session.layouts.size() == kTcpPoolsMax && !session.layouts.contains(told.pool)) {
    *why = "layouts of one agent are at most " + std::to_string(kTcpPoolsMax);
    return Status::kFull;
  }
  Layout& known = session.layouts[told.pool];
  std::vector<uint8_t> before, now;
  if (known.blocks() != 0) known.encode(&before);
  told.layout.encode(&now);
  if (before == now) return Status::kOk;
  // Requests that run keep the transform that they were accepted with.
  std::erase_if(session.transforms, [&](const Session::Known& entry) { return entry.peer_pool == told.pool; });
  known = told.layout;
  return Status::kOk;
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
  if (const Status status = transform_of(session, serving, &serving.transform, text); status != Status::kOk) return status;
  const uint64_t count = request.peer_blocks.size();
  if (count > 1 && count * serving.transform->runs_per_block() > kTcpPartRunsMax) {
    *text = "runs of a request must be at most " + std::to_string(kTcpPartRunsMax);
    return Status::kInvalid;
  }
  if (serving.transform->bytes_per_block() * count != request.bytes) {
    *text = "bytes differ: " + std::to_string(request.bytes) + " at the initiator, " +
            std::to_string(serving.transform->bytes_per_block() * count) + " at the responder";
    return Status::kMismatch;
  }
  // Before anything is granted: what would be found at the first byte.
  const bool reads = serving.direction == Direction::kRead;
  shared_.runs.clear();
  const Status lowered = serving.transform->lower((reads ? request.peer_blocks : request.own_blocks).data(),
                                                  (reads ? request.own_blocks : request.peer_blocks).data(),
                                                  static_cast<uint32_t>(count), &shared_.runs, text);
  if (lowered != Status::kOk) return lowered;
  return serving.hold.serve(*serving.pool, serving.direction, request.peer_blocks, request.generations, text);
}

Status TcpService::transform_of(Session& session, const Serving& serving, std::shared_ptr<const Transform>* out, std::string* text) {
  const TcpRequest& request = serving.request;
  for (const Session::Known& known : session.transforms) {
    if (known.own_pool != request.peer_pool || known.peer_pool != request.own_pool || known.direction != serving.direction ||
        !same(known.part, request.part))
      continue;
    *out = known.transform;
    return Status::kOk;
  }
  const auto layout = session.layouts.find(request.own_pool);
  if (layout == session.layouts.end()) {
    *text = "the layout of the initiator's pool " + std::to_string(request.own_pool) + " was not told";
    return Status::kNotFound;
  }
  const bool reads = serving.direction == Direction::kRead;
  const Layout& own = serving.pool->layout();
  const Status status = Transform::make(reads ? own : layout->second, reads ? layout->second : own, request.part, out, text);
  if (status != Status::kOk) return status;
  if (session.transforms.size() == kTransformsMax) session.transforms.erase(session.transforms.begin());
  session.transforms.push_back({request.peer_pool, request.own_pool, serving.direction, request.part, *out});
  return Status::kOk;
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
