// Peers of the tcp transport that do not keep to it: every one is cut off, nothing of theirs reaches memory, and others go on
// as before. They speak over sockets of their own to an agent; frames are damaged at random besides, against the parsers.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../fuzz/tcp_wire.h"
#include "crc32c.h"
#include "node.h"
#include "tcp_transport.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = 16;
constexpr uint32_t kBlockBytes = 4096;
constexpr int kWaitMs = 60'000;

std::vector<uint8_t> frame_of(TcpKind kind, uint64_t op, std::span<const uint8_t> payload, uint8_t flags = 0, uint32_t part = 0) {
  TcpHeader header;
  header.kind = kind;
  header.flags = flags;
  header.op = op;
  header.part = part;
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = crc32c(0, payload.data(), payload.size());
  std::vector<uint8_t> bytes(kTcpHeaderBytes);
  header.encode(bytes.data());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

TcpAddress address_of(Agent& agent) {
  Metadata metadata;
  std::string error;
  check(Metadata::decode(agent.metadata(), &metadata, &error) == Status::kOk, error);
  for (const TransportDescription& transport : metadata.transports) {
    TcpAddress address;
    if (transport.name == "tcp" && TcpAddress::decode(transport.described, &address, &error) == Status::kOk) return address;
  }
  check(false, "the agent describes no tcp address: " + error);
  return {};
}

class Stranger {
 public:
  explicit Stranger(const TcpAddress& address) : address_(address), descriptor_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(address.port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(connect(descriptor_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0, "a stranger can connect");
  }
  ~Stranger() { close(descriptor_); }
  Stranger(const Stranger&) = delete;

  void say(const std::vector<uint8_t>& bytes) {
    // May have been cut off already, which is what the test looks at.
    [[maybe_unused]] const ssize_t sent = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }

  TcpHello hello() const {
    TcpHello hello;
    hello.uuid = {0xee};
    hello.epoch = 5;
    hello.nonce = address_.nonce;
    hello.pools = address_.pools;
    return hello;
  }

  // The next frame; false when the connection ends instead.
  bool hear(TcpHeader* header, std::vector<uint8_t>* payload) {
    uint8_t bytes[kTcpHeaderBytes];
    std::string error;
    if (!take(bytes, sizeof(bytes))) return false;
    check(TcpHeader::decode(bytes, header, &error) == Status::kOk, error);
    payload->resize(header->length);
    return take(payload->data(), payload->size());
  }

  TcpReply greet(const TcpHello& hello) {
    say(frame_of(TcpKind::kHello, 0, hello.encode()));
    TcpHeader header;
    std::vector<uint8_t> payload;
    TcpReply reply;
    std::string error;
    check(hear(&header, &payload) && header.kind == TcpKind::kReply, "a hello is answered");
    check(TcpReply::decode(payload, &reply, &error) == Status::kOk, error);
    return reply;
  }

  void expect_cut(const std::string& what) {
    TcpHeader header;
    std::vector<uint8_t> payload;
    for (int frames = 0; frames < 64; frames++)
      if (!hear(&header, &payload)) return;
    check(false, what + " is not cut off");
  }

 private:
  bool take(uint8_t* bytes, size_t size) {
    for (size_t have = 0; have < size;) {
      pollfd waiting{descriptor_, POLLIN, 0};
      check(::poll(&waiting, 1, kWaitMs) == 1, "waited too long for an answer or the end");
      const ssize_t got = recv(descriptor_, bytes + have, size - have, 0);
      if (got <= 0) return false;
      have += static_cast<size_t>(got);
    }
    return true;
  }

  TcpAddress address_;
  int descriptor_;
};

// Handshakes that are refused, each with its field and both values.
void refuses_handshakes(const TcpAddress& address) {
  const auto refused = [&](const TcpHello& hello, TcpVerdict verdict, const std::string& words) {
    Stranger stranger(address);
    const TcpReply reply = stranger.greet(hello);
    check(reply.verdict == verdict, "refused for another reason: " + reply.text);
    check(reply.text.find(words) != std::string::npos, "names both values: " + reply.text);
    stranger.expect_cut("who was refused");
  };
  TcpHello hello = Stranger(address).hello();
  hello.major = 9;
  hello.major_min = 7;
  refused(hello, TcpVerdict::kVersion, "7 to 9 at the initiator, 1 to 1 at the responder");
  hello = Stranger(address).hello();
  hello.nonce[3] ^= 1;
  refused(hello, TcpVerdict::kNonce, "nonce");
  hello = Stranger(address).hello();
  hello.pools.at(0).hash = 0xabc;
  refused(hello, TcpVerdict::kLayout, "0x0000000000000abc at the initiator, 0x");

  // Cut off at every byte, by them.
  const std::vector<uint8_t> whole = frame_of(TcpKind::kHello, 0, Stranger(address).hello().encode());
  for (size_t bytes = 0; bytes <= whole.size(); bytes++) Stranger(address).say({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(bytes)});
}

struct Words {
  const char* what;
  std::vector<uint8_t> bytes;
};

std::vector<uint8_t> request_of(const Node& node, std::vector<uint32_t> theirs, std::vector<uint32_t> own, std::vector<uint32_t> generations) {
  Operation operation;
  operation.remote_pool = node.pool_id;
  operation.remote_blocks = theirs;
  operation.local_blocks = own;
  operation.remote_generations = generations;
  std::vector<uint8_t> bytes;
  encode_request(1, uint64_t{theirs.size()} * kBlockBytes, operation, 0, theirs.size(), &bytes);
  return bytes;
}

// After a good handshake: frames that end the connection, and requests that end with a status.
void cuts_off(Node& node, const TcpAddress& address) {
  uint32_t generation;
  const uint32_t ready = node.take(11, true, &generation);
  uint32_t reserved_generation;
  const uint32_t reserved = node.take(12, false, &reserved_generation);
  const std::vector<uint8_t> layout = frame_of(TcpKind::kLayout, 0, TcpLayout::encode(1, node.pool->layout()));
  const std::vector<uint8_t> write = request_of(node, {reserved}, {0}, {reserved_generation});
  const std::vector<uint8_t> some(512, 0x66);
  std::vector<uint8_t> magic = frame_of(TcpKind::kHeartbeat, 0, {});
  magic[0] ^= 1;
  std::vector<uint8_t> large = frame_of(TcpKind::kHeartbeat, 0, {});
  TcpHeader oversized;
  oversized.kind = TcpKind::kNotify;
  oversized.length = kNotificationBytesMax + 1;
  oversized.encode(large.data());
  std::vector<uint8_t> damaged = frame_of(TcpKind::kNotify, 0, some);
  damaged.back() ^= 1;
  const Words list[] = {{"a wrong magic", magic},
                        {"an oversized frame", large},
                        {"a damaged payload", damaged},
                        {"data without a grant", frame_of(TcpKind::kData, 3, some)},
                        {"a grant to a responder", frame_of(TcpKind::kGrant, 3, {})},
                        {"a second hello", frame_of(TcpKind::kHello, 0, some)},
                        {"a layout that is none", frame_of(TcpKind::kLayout, 0, some)},
                        {"a request without blocks", frame_of(TcpKind::kRead, 1, std::vector<uint8_t>(44))}};
  for (const Words& words : list) {
    Stranger stranger(address);
    check(stranger.greet(stranger.hello()).verdict == TcpVerdict::kAccept, "a good hello is accepted");
    stranger.say(words.bytes);
    stranger.expect_cut(words.what);
  }
  const auto join = [](std::vector<std::vector<uint8_t>> frames) {
    std::vector<uint8_t> all;
    for (const auto& frame : frames) all.insert(all.end(), frame.begin(), frame.end());
    return all;
  };
  for (const bool replays : {true, false}) {
    Stranger stranger(address);
    stranger.greet(stranger.hello());
    const std::vector<uint8_t> beyond(kBlockBytes + 1, 0x66);
    stranger.say(join({layout, frame_of(TcpKind::kWrite, 5, write), replays ? frame_of(TcpKind::kWrite, 5, write) : frame_of(TcpKind::kData, 5, beyond)}));
    stranger.expect_cut(replays ? "a replayed op" : "more data than were granted");
  }
  const struct {
    std::vector<uint8_t> request;
    TcpKind kind;
    Status status;
  } requests[] = {{request_of(node, {kBlocks}, {0}, {1}), TcpKind::kRead, Status::kInvalid},
                  {request_of(node, {ready}, {0}, {generation + 1}), TcpKind::kRead, Status::kStale},
                  {request_of(node, {ready}, {0}, {}), TcpKind::kRead, Status::kInvalid},
                  {request_of(node, {ready}, {0}, {generation}), TcpKind::kWrite, Status::kNotAllowed},
                  {request_of(node, {reserved}, {0}, {reserved_generation}), TcpKind::kRead, Status::kNotAllowed}};
  Stranger stranger(address);
  stranger.greet(stranger.hello());
  stranger.say(layout);
  uint64_t op = 0;
  for (const auto& request : requests) {
    stranger.say(frame_of(request.kind, ++op, request.request));
    TcpHeader header;
    std::vector<uint8_t> payload;
    TcpDone done;
    std::string error;
    check(stranger.hear(&header, &payload) && header.kind == TcpKind::kDone && header.op == op, "a request ends");
    check(TcpDone::decode(payload, &done, &error) == Status::kOk && done.status == request.status, std::string("ended as ") + status_name(done.status));
  }
  check(holds(*node.pool, ready, 11) && holds(*node.pool, reserved, 12), "no byte of theirs has come in");
}

void damages_frames(std::mt19937& random, uint32_t cases) {
  Layout layout;
  std::string error;
  check(Layout::opaque(64, 64, 4, 256, &layout, &error) == Status::kOk, error);
  TcpHello hello;
  hello.pools = {{1, 2}, {3, 4}};
  TcpReply reply;
  reply.text = "why";
  Operation operation;
  const std::vector<uint32_t> blocks = {1, 2, 3};
  operation.remote_blocks = operation.local_blocks = operation.remote_generations = blocks;
  std::vector<uint8_t> request;
  encode_request(1, 192, operation, 0, 3, &request);
  TcpAddress address;
  address.port = 1;
  address.hosts = {"127.0.0.1"};
  address.pools = {{1, 2}};
  std::vector<uint8_t> described;
  address.encode(&described);
  const std::vector<uint8_t> frames[] = {frame_of(TcpKind::kHello, 0, hello.encode()), frame_of(TcpKind::kReply, 0, reply.encode()),
                                         frame_of(TcpKind::kLayout, 0, TcpLayout::encode(1, layout)), frame_of(TcpKind::kRead, 1, request),
                                         frame_of(TcpKind::kDone, 1, TcpDone{Status::kStale, "why"}.encode()), described};
  for (uint32_t i = 0; i < cases; i++) {
    std::vector<uint8_t> bytes = frames[random() % std::size(frames)];
    for (uint32_t changes = pick(random, 0, 3); changes > 0; changes--) bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 1));
    fuzz::parse_tcp(bytes.data(), bytes.size());
  }
}

}  // namespace

void tcp_hostile(std::mt19937& random, uint32_t cases) {
  damages_frames(random, cases);
  Node node = Node::make(tcp_transport({}), kBlocks, kBlockBytes);
  const TcpAddress address = address_of(*node.agent);
  refuses_handshakes(address);
  cuts_off(node, address);
  // After all of them, somebody who keeps to it.
  Node good = Node::make(tcp_transport({}), kBlocks, kBlockBytes);
  TransferRequest request;
  request.peer = good.meet(node);
  request.local_pool = good.pool_id;
  request.remote_pool = node.pool_id;
  uint32_t generation;
  request.local_blocks = {good.take(0, false, &generation)};
  request.remote_blocks = {node.take(99, true, &generation)};
  request.remote_generations = {generation};
  std::string error;
  const int64_t id = good.agent->submit(request, &error);
  check(id > 0 && good.completion(id).status == Status::kOk, "others go on: " + error);
  check(holds(*good.pool, request.local_blocks[0], 99), "with their bytes");
}

}  // namespace millrace::kv::test
