// How a peer's connections come to stand, stay and end. See tcp_peer.h.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tcp_peer.h"

namespace millrace::kv {
namespace {

// A connection that is being made to a numeric address; -1 with the reason.
int begin_connect(const std::string& host, uint16_t port, std::string* error) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); code != 0) {
    *error = "host " + host + ": " + gai_strerror(code);
    return -1;
  }
  const int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const bool began = descriptor >= 0 && (connect(descriptor, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS);
  if (!began) *error = "connecting to " + host + " port " + std::to_string(port) + ": " + std::strerror(errno);
  freeaddrinfo(found);
  if (began) return descriptor;
  if (descriptor >= 0) close(descriptor);
  return -1;
}

}  // namespace

Status TcpPeer::connect(std::string* error) {
  is_lost_ = false;
  host_ = 0;
  for (; host_ < address_.hosts.size(); host_++)
    if (open_stream(error) == Status::kOk) return Status::kOk;
  is_lost_ = true;
  return Status::kUnsupported;
}

Status TcpPeer::open_stream(std::string* error) {
  const int descriptor = begin_connect(address_.hosts[host_], address_.port, error);
  if (descriptor < 0) return Status::kSystem;
  auto stream = std::make_unique<Stream>();
  stream->connection = TcpConnection::open(shared_.loop, *this, descriptor, shared_.options.buffer_bytes, error);
  if (stream->connection == nullptr) return Status::kSystem;
  stream->begun_ns = shared_.host->now_ns();
  TcpHello hello;
  hello.uuid = shared_.uuid;
  hello.epoch = shared_.epoch;
  hello.nonce = address_.nonce;
  hello.pools = address_.pools;
  TcpHeader header;
  header.kind = TcpKind::kHello;
  stream->connection->send(header, hello.encode());
  streams_.push_back(std::move(stream));
  return Status::kOk;
}

Status TcpPeer::welcome(Stream& stream, std::span<const uint8_t> payload, std::string* why) {
  TcpReply reply;
  if (const Status status = TcpReply::decode(payload, &reply, why); status != Status::kOk) return status;
  if (reply.verdict != TcpVerdict::kAccept) {
    *why = "the peer refuses the connection: " + reply.text;
    return Status::kMismatch;
  }
  if (reply.uuid != address_.uuid || reply.epoch != address_.epoch) {
    *why = "another life of the peer answers: epoch " + std::to_string(reply.epoch) + ", described " + std::to_string(address_.epoch);
    return Status::kStale;
  }
  stream.is_ready = true;
  stream.credit_parts = reply.parts;
  stream.credit_bytes = std::min(reply.window, shared_.options.window_bytes);
  if (&stream == streams_[0].get()) {
    TcpHeader header;
    header.kind = TcpKind::kNotify;
    for (const std::vector<uint8_t>& note : std::exchange(notes_, {})) {
      note_bytes_ -= note.size();
      stream.connection->send(header, note);
    }
  }
  feed();
  return Status::kOk;
}

void TcpPeer::tick(uint64_t now) {
  if (is_lost_ || streams_.empty()) return;
  for (const auto& stream : streams_) {
    if (!stream->is_ready && now - stream->begun_ns > kTcpConnectNs) stream->connection->fail("the handshake took too long");
  }
  Stream& first = *streams_[0];
  if (!first.is_ready) return;
  const uint64_t since = std::max(heard_ns_, shared_.awake_ns);
  if (now > since && now - since > kTcpSilenceNs)
    return lose("nothing was heard for " + std::to_string((now - since) / 1'000'000) + " ms");
  if (now < beat_ns_) return;
  beat_ns_ = now + uint64_t{kHeartbeatMs} * 1'000'000;
  TcpHeader header;
  header.kind = TcpKind::kHeartbeat;
  first.connection->send(header);
}

// One connection that ends is the end of all: what was asked on it is not known to have happened.
void TcpPeer::closed(TcpConnection& connection, const std::string& why) {
  // The first, before it stood: the peer may have another address.
  if (streams_.size() == 1 && !streams_[0]->is_ready && streams_[0]->connection.get() == &connection) {
    streams_.clear();
    std::string error;
    while (++host_ < address_.hosts.size())
      if (open_stream(&error) == Status::kOk) return;
  }
  lose(why);
}

}  // namespace millrace::kv
