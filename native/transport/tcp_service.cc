// Connections of peers: who they are, and how they stay and end. Requests are in tcp_service_requests.cc. See tcp_service.h.
#include "tcp_service.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace::kv {
namespace {

constexpr int kBacklog = 128;
constexpr int kAcceptsAtOnce = 16;

std::string hex(uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof(text), "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

TcpService::~TcpService() {
  served_.clear();
  if (listener_ >= 0) close(listener_);
}

Status TcpService::listen(std::string* error) {
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string& host = shared_.options.listen_host;
  if (const int code = getaddrinfo(host.c_str(), std::to_string(shared_.options.port).c_str(), &hints, &found); code != 0) {
    *error = "listen_host " + host + ": " + gai_strerror(code);
    return Status::kInvalid;
  }
  const int one = 1;
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  listener_ = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const bool listens = listener_ >= 0 && setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0 &&
                       bind(listener_, found->ai_addr, found->ai_addrlen) == 0 && ::listen(listener_, kBacklog) == 0 &&
                       getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size) == 0;
  freeaddrinfo(found);
  if (!listens) {
    *error = "listening on " + host + " port " + std::to_string(shared_.options.port) + ": " + std::strerror(errno);
    return Status::kSystem;
  }
  port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                            : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return shared_.loop.watch(listener_, EPOLLIN, this, error);
}

void TcpService::ready(uint32_t) {
  for (int i = 0; i < kAcceptsAtOnce; i++) {
    const int descriptor = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    // Whatever it is, the next event says it again.
    if (descriptor < 0) return;
    if (served_.size() >= kTcpServedMax) {
      close(descriptor);
      continue;
    }
    if (strangers_ >= kTcpStrangersMax) drop_stranger();
    auto served = std::make_unique<Served>();
    std::string error;
    served->connection = TcpConnection::open(shared_.loop, *this, descriptor, shared_.options.buffer_bytes, &error);
    if (served->connection == nullptr) continue;
    served->begun_ns = shared_.host->now_ns();
    strangers_++;
    served_.emplace(served->connection.get(), std::move(served));
  }
}

// The one that has been silent longest: those who mean it speak at once.
void TcpService::drop_stranger() {
  TcpConnection* oldest = nullptr;
  uint64_t since = UINT64_MAX;
  for (const auto& [connection, served] : served_) {
    if (served->session != nullptr || served->connection->is_dead() || served->begun_ns >= since) continue;
    oldest = served->connection.get();
    since = served->begun_ns;
  }
  if (oldest != nullptr) oldest->fail("others wait to say who they are");
}

TcpVerdict TcpService::judge(const TcpHello& hello, std::string* text) const {
  if (!tcp_versions_fit(hello, text)) return TcpVerdict::kVersion;
  if (hello.nonce != shared_.nonce) {
    *text = "nonce differs: another process was meant than the one that listens here now, epoch " + std::to_string(shared_.epoch);
    return TcpVerdict::kNonce;
  }
  for (const TcpAddress::PoolHash& theirs : hello.pools) {
    const auto found = shared_.pools.find(theirs.pool);
    // A pool that is gone fails the requests for it, and nothing else.
    if (found == shared_.pools.end()) continue;
    const uint64_t hash = found->second->layout().hash();
    if (hash == theirs.hash) continue;
    *text = "layout of pool " + std::to_string(theirs.pool) + " differs: " + hex(theirs.hash) + " at the initiator, " + hex(hash) +
            " at the responder";
    return TcpVerdict::kLayout;
  }
  const auto session = sessions_.find(hello.uuid);
  const auto peer = peers_.find(hello.uuid);
  uint64_t newest = session == sessions_.end() ? 0 : session->second->epoch;
  if (peer != peers_.end()) newest = std::max(newest, peer->second.first);
  if (hello.epoch < newest) {
    *text = "epoch differs: " + std::to_string(hello.epoch) + " at the initiator, fenced by " + std::to_string(newest) +
            " at the responder";
    return TcpVerdict::kEpoch;
  }
  return TcpVerdict::kAccept;
}

Status TcpService::greet(Served& served, std::span<const uint8_t> payload, std::string* why) {
  TcpHello hello;
  TcpReply reply;
  reply.uuid = shared_.uuid;
  reply.epoch = shared_.epoch;
  reply.window = shared_.options.window_bytes;
  if (TcpHello::decode(payload, &hello, &reply.text) != Status::kOk) reply.verdict = TcpVerdict::kDamaged;
  else reply.verdict = judge(hello, &reply.text);
  reply.capabilities &= hello.capabilities;
  TcpHeader header;
  header.kind = TcpKind::kReply;
  served.connection->send(header, reply.encode());
  if (reply.verdict != TcpVerdict::kAccept) {
    served.connection->fail_after_sending("refused: " + reply.text);
    return Status::kOk;
  }
  std::shared_ptr<Session>& session = sessions_[hello.uuid];
  if (session != nullptr && session->epoch != hello.epoch) {
    for (const auto& [connection, other] : served_)
      if (other->session == session) other->connection->fail("another life of this agent has connected");
    session = nullptr;
  }
  if (session == nullptr) {
    session = std::make_shared<Session>();
    session->uuid = hello.uuid;
    session->epoch = hello.epoch;
  }
  session->connections++;
  session->heard_ns = shared_.host->now_ns();
  served.session = session;
  strangers_--;
  if (session->connections <= 2 * kTcpStreamsMax) return Status::kOk;
  *why = "connections of one agent are at most " + std::to_string(2 * kTcpStreamsMax);
  return Status::kFull;
}

void TcpService::set_peer(const TcpUuid& uuid, uint64_t epoch, uint32_t peer) {
  const auto found = sessions_.find(uuid);
  const bool is_here = found != sessions_.end() && found->second->epoch == epoch;
  if (peer == 0) {
    const auto known = peers_.find(uuid);
    if (known != peers_.end() && known->second.first == epoch) peers_.erase(known);
    if (!is_here) return;
    for (const auto& [connection, served] : served_)
      if (served->session == found->second) served->connection->fail("the peer was removed");
    return;
  }
  peers_[uuid] = {epoch, peer};
  if (!is_here) return;
  found->second->held_bytes = 0;
  for (const std::vector<uint8_t>& bytes : std::exchange(found->second->held, {})) shared_.host->notified(peer, bytes);
}

void TcpService::notified(Session& session, std::span<const uint8_t> bytes) {
  const auto found = peers_.find(session.uuid);
  if (found != peers_.end() && found->second.first == session.epoch) return shared_.host->notified(found->second.second, bytes);
  session.held.emplace_back(bytes.begin(), bytes.end());
  session.held_bytes += bytes.size();
}

void TcpService::closed(TcpConnection& connection, const std::string&) {
  const auto found = served_.find(&connection);
  const std::shared_ptr<Session> session = found->second->session;
  if (session == nullptr) strangers_--;
  // Blocks of its requests are let go here: nothing is copied for it any more.
  served_.erase(found);
  if (session == nullptr || --session->connections != 0) return;
  const auto current = sessions_.find(session->uuid);
  if (current != sessions_.end() && current->second == session) sessions_.erase(current);
}

void TcpService::tick(uint64_t now) {
  for (const auto& [connection, served] : served_) {
    const uint64_t heard = served->session == nullptr ? served->begun_ns : served->session->heard_ns;
    const uint64_t since = std::max(heard, shared_.awake_ns);
    const uint64_t limit = served->session == nullptr ? kTcpConnectNs : kTcpSilenceNs;
    if (now > since && now - since > limit) served->connection->fail("nothing was heard for too long");
  }
}

bool TcpService::touches(const Pool& pool) const {
  for (const auto& [connection, served] : served_)
    for (const auto& [op, serving] : served->requests)
      if (serving.pool == &pool) return true;
  return false;
}

void TcpService::forget_pool(uint32_t pool) {
  for (const auto& [uuid, session] : sessions_) session->layouts.forget_pool(pool);
}

}  // namespace millrace::kv
