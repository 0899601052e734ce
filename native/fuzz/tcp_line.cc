// A whole tcp transport and a stranger at its socket, who connects to it, or to whom it has connected: the handshake is right
// or not, and then come frames. First byte: bit 0 we are the responder, bit 1 our part of the handshake is left out. Each step:
// u8 kind (0: the transport is given an operation), u8 flags (bit 7: a wrong checksum), u8 op, u8 part, u16 n, n bytes.
// Whatever comes, every operation ends once and no block stays counted in.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "crc32c.h"
#include "line.h"
#include "tcp_transport.h"

namespace {

using namespace millrace::kv;
using namespace millrace::kv::fuzz;

constexpr uint64_t kEpoch = 7;

struct World {
  Host host;
  std::unique_ptr<Pool> pool = make_pool();
  std::unique_ptr<Transport> transport;
  TcpAddress address;
  int listener = -1;
  uint16_t port = 0;

  World() {
    TransportSetup setup{&host, "fuzz", {1}, kEpoch, "127.0.0.1"};
    std::string error;
    TcpOptions options;
    options.streams_large = 1;
    transport = TcpTransport::make(options, setup, &error);
    expect(transport != nullptr && transport->add_pool(pool.get()) == Status::kOk);
    std::vector<uint8_t> described;
    transport->describe(&described);
    expect(TcpAddress::decode(described, &address, &error) == Status::kOk);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(any);
    expect(bind(listener, reinterpret_cast<sockaddr*>(&any), size) == 0 && listen(listener, 8) == 0);
    expect(getsockname(listener, reinterpret_cast<sockaddr*>(&any), &size) == 0);
    port = ntohs(any.sin_port);
  }

  int call() const {
    const int line = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(address.port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    expect(connect(line, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0);
    return line;
  }

  int be_called() const {
    TcpAddress described;
    described.uuid = {9};
    described.epoch = kEpoch;
    described.port = port;
    described.hosts = {"127.0.0.1"};
    std::vector<uint8_t> bytes;
    described.encode(&bytes);
    std::string reason;
    expect(transport->add_peer(kPeer, bytes, &reason) == Status::kOk);
    return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  }
};

void say(int line, const TcpHeader& header, std::span<const uint8_t> payload) {
  std::vector<uint8_t> bytes(kTcpHeaderBytes);
  header.encode(bytes.data());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  // It may have been cut off.
  [[maybe_unused]] const ssize_t sent = send(line, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void say(int line, TcpKind kind, std::span<const uint8_t> payload) {
  TcpHeader header;
  header.kind = kind;
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = crc32c(0, payload.data(), payload.size());
  say(line, header, payload);
}

void greet(int line, const World& world, bool is_responder) {
  if (is_responder) {
    TcpReply reply;
    reply.uuid = {9};
    reply.epoch = kEpoch;
    reply.window = 1u << 20;
    return say(line, TcpKind::kReply, reply.encode());
  }
  TcpHello hello;
  hello.uuid = {0xee};
  hello.epoch = kEpoch;
  hello.nonce = world.address.nonce;
  hello.pools = world.address.pools;
  say(line, TcpKind::kHello, hello.encode());
  say(line, TcpKind::kLayout, TcpLayout::encode(1, world.pool->layout()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static World& world = *new World();
  WordReader in(bytes, size);
  const auto how = in.take<uint8_t>();
  const bool is_responder = (how & 1) != 0;
  Operations operations(*world.transport, *world.pool);
  const int line = is_responder ? world.be_called() : world.call();
  expect(line >= 0);
  if ((how & 2) == 0) greet(line, world, is_responder);
  while (in.left() >= 6) {
    const auto kind = in.take<uint8_t>();
    TcpHeader header;
    header.kind = static_cast<TcpKind>(kind);
    const auto flags = in.take<uint8_t>();
    header.flags = flags & 0x7f;
    header.op = in.take<uint8_t>();
    header.part = in.take<uint8_t>();
    const std::span<const uint8_t> payload = in.bytes(std::min<size_t>(in.take<uint16_t>(), in.left()));
    header.length = static_cast<uint32_t>(payload.size());
    header.payload_crc = crc32c(flags >> 7, payload.data(), payload.size());
    if (kind == 0) operations.submit(static_cast<Direction>(header.op & 1), header.part, (header.flags & 1) != 0);
    else say(line, header, payload);
    operations.progress();
  }
  // No port is left waiting.
  const linger at_once{1, 0};
  setsockopt(line, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  close(line);
  operations.progress();
  if (is_responder) world.transport->remove_peer(kPeer);
  operations.progress();
  expect(operations.are_over());
  for (int turn = 0; world.transport->remove_pool(world.pool.get()) == Status::kBusy; turn++) {
    // The end of the line is still under way.
    pollfd waiting{world.transport->wait_descriptor(), POLLIN, 0};
    expect(turn < 100 && poll(&waiting, 1, 1000) >= 0);
    operations.progress();
  }
  expect(world.transport->add_pool(world.pool.get()) == Status::kOk);
  return 0;
}
