// Lines to other agents: how they begin, are watched and end, and who gets what comes through them. See ucx_transport.h.
#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "ucx_transport.h"

namespace millrace::kv {
namespace {

constexpr size_t kHellosMax = 64;
constexpr size_t kHeldNotesMax = 256;
constexpr uint64_t kMillisecond = 1'000'000;
// How long a line that has been given up may still send what is queued.
constexpr uint64_t kLingerNs = 100 * kMillisecond;

std::string hex(uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof(text), "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Status UcxTransport::add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) {
  UcxAddress address;
  if (UcxAddress::decode(described, &address, reason) != Status::kOk) return Status::kUnsupported;
  Line* line = line_of(peer);
  const bool is_same = line != nullptr && !line->is_lost && line->link.address().nonce == address.nonce;
  if (line != nullptr && !is_same) {
    remove_peer(peer);
    line = nullptr;
  }
  if (line == nullptr) {
    line = line_of(address.uuid);
    // They have called us already.
    if (line != nullptr && line->link.address().nonce != address.nonce) line = nullptr;
    if (line == nullptr) line = connect(address, reason);
    if (line == nullptr) return Status::kUnsupported;
    if (line->peer_needs_hello()) say_hello(*line, address);
    line->number = peer;
    peers_[peer] = line;
    for (const std::vector<uint8_t>& bytes : std::exchange(line->held, {})) shared_.host->notified(peer, bytes);
  }
  line->peer.set_pools(std::move(address.pools));
  return Status::kOk;
}

// The line that is in use with this agent.
UcxTransport::Line* UcxTransport::line_of(const TcpUuid& uuid) {
  for (const auto& [key, line] : lines_)
    if (!line->is_lost && line->fault.empty() && line->link.address().uuid == uuid) return line.get();
  return nullptr;
}

UcxTransport::Line* UcxTransport::connect(const UcxAddress& address, std::string* error) {
  if (lines_.size() >= kUcxLinksMax) {
    *error = "other agents at once must be at most " + std::to_string(kUcxLinksMax);
    return nullptr;
  }
  UcxAddress kept = address;
  kept.pools.clear();
  auto line = std::make_unique<Line>(shared_, std::move(kept));
  if (line->link.open(error) != Status::kOk) return nullptr;
  if (const int process = line->link.process(); process >= 0) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = process;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, process, &event) == 0) processes_[process] = line.get();
  }
  line->link.heard_ns = line->link.begun_ns;
  shared_.is_armed = false;
  return (lines_[line->link.own_key] = std::move(line)).get();
}

void UcxTransport::say_hello(Line& line, const UcxAddress& address) {
  UcxHello hello;
  hello.hello.uuid = shared_.self.uuid;
  hello.hello.epoch = shared_.self.epoch;
  hello.hello.nonce = address.nonce;
  for (const UcxAddress::PoolKey& pool : address.pools) hello.hello.pools.push_back({pool.pool, pool.hash});
  hello.key = line.link.own_key;
  hello.address = shared_.self;
  line.has_called = true;
  line.link.send(UcxKind::kHello, 0, hello.encode());
}

void UcxTransport::remove_peer(uint32_t peer) {
  Line* const line = line_of(peer);
  if (line == nullptr) return;
  peers_.erase(peer);
  line->number = 0;
  if (line->is_lost) return;
  line->peer.end(Status::kCancelled);
  if (line->is_ready) line->link.send(UcxKind::kGoodbye, 0, {});
  lose(*line, "the peer was removed", shared_.host->now_ns() + kLingerNs);
}

// Ends what is in flight. Nothing is closed here, as this may be inside UCX.
void UcxTransport::lose(Line& line, const std::string& why, uint64_t linger_until_ns) {
  if (std::exchange(line.is_lost, true)) return;
  line.why = why;
  line.linger_until_ns = linger_until_ns;
  line.peer.end(Status::kPeerLost);
  line.service.end();
  shared_.is_armed = false;
}

// A line's turn: what it has to send and to move, and, when it is lost, its way to its end.
bool UcxTransport::tend(Line& line, uint64_t until) {
  UcxLink& link = line.link;
  if (!line.is_lost && link.has_failed()) line.fault = std::string("UCX: ") + shared_.api().status_string(link.failure());
  if (!line.is_lost && !line.fault.empty()) lose(line, line.fault, 0);
  bool has_worked = line.peer.work(until);
  if (!line.is_lost) has_worked |= line.service.work();
  has_worked |= link.pump();
  if (!line.is_lost) return has_worked;
  if (line.has_process_ended || link.is_closed()) line.service.release_all();
  // On one host the peer's process can reach what it was granted as long as it lives, and says when it does not any more.
  const bool is_quiet = line.service.is_quiet() && line.peer.is_quiet();
  const bool may_close = link.is_same_host() ? line.has_process_ended || is_quiet : true;
  const bool lingers = !link.has_failed() && !link.is_idle() && shared_.host->now_ns() < line.linger_until_ns;
  if (!link.is_closing() && may_close && !lingers) {
    has_worked = true;
    link.close();
  }
  if (line.number != 0 && !line.is_told && line.peer.is_quiet()) {
    has_worked = line.is_told = true;
    shared_.lost.emplace_back(line.number, line.why);
  }
  if (line.number == 0 && link.is_closed() && is_quiet) forget(line);
  return has_worked;
}

void UcxTransport::forget(Line& line) {
  line.peer.release_keys();
  if (processes_.erase(line.link.process()) != 0) epoll_ctl(epoll_, EPOLL_CTL_DEL, line.link.process(), nullptr);
  std::erase_if(operations_, [&](const auto& entry) { return entry.second.first == &line; });
  lines_.erase(line.link.own_key);
}

void UcxTransport::tick(uint64_t now) {
  tick_ns_ = now + 100 * kMillisecond;
  for (const auto& [key, line] : lines_) {
    UcxLink& link = line->link;
    if (line->is_lost) continue;
    const uint64_t since = std::max(line->is_ready ? link.heard_ns : link.begun_ns, shared_.awake_ns);
    if (now > since && now - since > (line->is_ready ? kUcxSilenceNs : kUcxConnectNs)) line->fault = "nothing was heard for too long";
    if (!line->is_ready || now - link.beat_ns < kHeartbeatMs * kMillisecond || link.queued_bytes() != 0) continue;
    link.beat_ns = now;
    link.send(UcxKind::kHeartbeat, 0, {});
  }
}

// ---- what comes, inside UCX

UcsStatus UcxTransport::received(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                 const UcpAmReceived* received) {
  // Nobody of ours announces data; there is nothing to give back of a message that is not taken.
  if ((received->attributes & kUcpAmRendezvous) != 0) return kUcsOk;
  static_cast<UcxTransport*>(argument)->take({static_cast<const uint8_t*>(header), header_bytes}, {static_cast<const uint8_t*>(data), bytes});
  return kUcsOk;
}

void UcxTransport::take(std::span<const uint8_t> bytes, std::span<const uint8_t> payload) {
  UcxHeader header;
  std::string why;
  const Status status = UcxHeader::decode(bytes, payload, &header, &why);
  if (status != Status::kOk && status != Status::kCorrupt) return;
  if (header.kind == UcxKind::kHello) {
    if (status == Status::kOk && hellos_.size() < kHellosMax) hellos_.emplace_back(payload.begin(), payload.end());
    return;
  }
  const auto found = lines_.find(header.key);
  if (found == lines_.end()) return;
  Line& line = *found->second;
  // Of one that is lost, or about to be, only its word that it has ended what it was granted.
  if ((line.is_lost || !line.fault.empty()) && header.kind != UcxKind::kEnd) return;
  line.link.heard_ns = shared_.host->now_ns();
  Status outcome = status;
  if (status == Status::kCorrupt && header.is_data()) {
    outcome = Status::kOk;
    if (header.kind == UcxKind::kData) line.peer.corrupt(header.op);
    else line.service.corrupt(header.op);
  } else if (status == Status::kOk) {
    outcome = dispatch(line, header, payload, &why);
  }
  if (outcome != Status::kOk) line.fault = "it broke the protocol: " + why;
}

Status UcxTransport::dispatch(Line& line, const UcxHeader& header, std::span<const uint8_t> payload, std::string* why) {
  switch (header.kind) {
    case UcxKind::kHeartbeat: return Status::kOk;
    case UcxKind::kWelcome: return welcome(line, payload, why);
    case UcxKind::kGoodbye: line.fault = "it has ended"; return Status::kOk;
    case UcxKind::kGrant:
    case UcxKind::kData:
    case UcxKind::kDone: return line.peer.frame(header, payload, why);
    case UcxKind::kNotify: break;
    default: return line.service.frame(header, payload, why);
  }
  *why = "too long a notification, or too many of an agent that was not added here";
  if (payload.size() > kNotificationBytesMax || line.held.size() >= kHeldNotesMax) return Status::kFull;
  if (line.number != 0) shared_.host->notified(line.number, payload);
  else line.held.emplace_back(payload.begin(), payload.end());
  return Status::kOk;
}

Status UcxTransport::welcome(Line& line, std::span<const uint8_t> payload, std::string* why) {
  UcxWelcome welcome;
  if (const Status status = UcxWelcome::decode(payload, &welcome, why); status != Status::kOk) return status;
  if (welcome.reply.verdict != TcpVerdict::kAccept) {
    *why = "refused: " + welcome.reply.text;
    return Status::kNotAllowed;
  }
  *why = "a welcome of another agent than was called";
  const UcxAddress& address = line.link.address();
  if (welcome.reply.uuid != address.uuid || welcome.reply.epoch != address.epoch || welcome.key == 0) return Status::kInvalid;
  set_ready(line, welcome.key);
  return Status::kOk;
}

void UcxTransport::set_ready(Line& line, uint64_t peer_key) {
  line.link.peer_key = peer_key;
  line.is_ready = true;
  line.peer.begin();
}

// ---- who calls

TcpVerdict UcxTransport::judge(const TcpHello& hello, std::string* text) const {
  if (!tcp_versions_fit(hello, text)) return TcpVerdict::kVersion;
  for (const TcpAddress::PoolHash& theirs : hello.pools) {
    const auto found = shared_.pools.find(theirs.pool);
    // A pool that is gone fails the requests for it, and nothing else.
    const uint64_t hash = found == shared_.pools.end() ? theirs.hash : found->second.pool->layout().hash();
    if (hash == theirs.hash) continue;
    *text = "layout of pool " + std::to_string(theirs.pool) + " differs: " + hex(theirs.hash) + " at the initiator, " + hex(hash) +
            " at the responder";
    return TcpVerdict::kLayout;
  }
  for (const auto& [key, line] : lines_) {
    const UcxAddress& known = line->link.address();
    if (known.uuid != hello.uuid || known.epoch <= hello.epoch) continue;
    *text = "epoch differs: " + std::to_string(hello.epoch) + " at the initiator, fenced by " + std::to_string(known.epoch) +
            " at the responder";
    return TcpVerdict::kEpoch;
  }
  return TcpVerdict::kAccept;
}

void UcxTransport::take_hello(std::span<const uint8_t> payload) {
  UcxHello hello;
  std::string why;
  // Whoever does not have our metadata gets no answer: there is no endpoint to give it by that we would trust.
  if (UcxHello::decode(payload, &hello, &why) != Status::kOk || hello.hello.nonce != shared_.self.nonce) return;
  UcxWelcome answer;
  answer.reply.uuid = shared_.self.uuid;
  answer.reply.epoch = shared_.self.epoch;
  answer.reply.verdict = judge(hello.hello, &answer.reply.text);
  Line* line = line_of(hello.hello.uuid);
  const bool is_other = line != nullptr && (line->link.address().nonce != hello.address.nonce ||
                                            (line->link.peer_key != 0 && line->link.peer_key != hello.key));
  if (is_other && answer.reply.verdict == TcpVerdict::kAccept) {
    lose(*line, "the agent has connected anew", 0);
    line = nullptr;
  }
  const bool is_refused = answer.reply.verdict != TcpVerdict::kAccept;
  if (line == nullptr || is_refused) line = connect(hello.address, &why);
  if (line == nullptr) return;
  if (is_refused) line->link.peer_key = hello.key;
  else set_ready(*line, hello.key);
  answer.key = is_refused ? 0 : line->link.own_key;
  line->link.send(UcxKind::kWelcome, 0, answer.encode());
  if (is_refused) lose(*line, "refused: " + answer.reply.text, shared_.host->now_ns() + kLingerNs);
}

}  // namespace millrace::kv
