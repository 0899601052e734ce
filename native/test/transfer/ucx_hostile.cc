// What the ucx transport refuses: damaged bytes in every parser, messages of those who were not told a key, and peers that
// say hello and then do not keep to the protocol. No byte of a block changes, and no block stays held.
#include <list>
#include <map>

#include "metadata.h"
#include "node.h"
#include "ucx_process.h"
#include "ucx_transport.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = 8;
constexpr uint32_t kBlockBytes = 4096;

UcxAddress address_of(const std::vector<uint8_t>& metadata) {
  Metadata decoded;
  std::string error;
  check(Metadata::decode(metadata, &decoded, &error) == Status::kOk, error);
  UcxAddress address;
  check(UcxAddress::decode(decoded.transports[0].described, &address, &error) == Status::kOk, error);
  return address;
}

// A peer of UCX that says what it likes.
class Stranger {
 public:
  explicit Stranger(const UcxAddress& whom) : whom_(whom) {
    std::string error;
    context_ = UcxContext::get(&error);
    check(context_ != nullptr, error);
    UcpWorkerParams params{};
    params.field_mask = kUcpWorkerThreadMode;
    params.thread_mode = kUcsThreadSerialized;
    check(api().worker_create(context_->handle(), &params, &worker_) == kUcsOk, "a worker");
    const UcpAmHandler handler{kUcpAmHandlerId | kUcpAmHandlerCallback | kUcpAmHandlerArgument, kUcxMessageId, 0, heard, this};
    check(api().worker_set_am_handler(worker_, &handler) == kUcsOk, "a handler");
    UcpEndpointParams endpoint{};
    endpoint.field_mask = kUcpEndpointAddress;
    endpoint.address = whom_.worker.data();
    check(api().endpoint_create(worker_, &endpoint, &endpoint_) == kUcsOk, "an endpoint");
    void* bytes = nullptr;
    size_t size = 0;
    check(api().worker_get_address(worker_, &bytes, &size) == kUcsOk, "an address");
    self_ = whom_;
    self_.pools.clear();
    self_.uuid = {7, 7, 7};
    self_.nonce = {9};
    self_.epoch = 1;
    self_.worker.assign(static_cast<uint8_t*>(bytes), static_cast<uint8_t*>(bytes) + size);
    api().worker_release_address(worker_, bytes);
  }
  ~Stranger() { api().worker_destroy(worker_); }
  Stranger(const Stranger&) = delete;

  void say(std::vector<uint8_t> header, std::vector<uint8_t> payload) {
    // Kept to the end, as UCX may read them later.
    const auto& [head, body] = said_.emplace_back(std::move(header), std::move(payload));
    UcpRequestParams params{};
    params.attributes = kUcpOpFlags;
    params.flags = kUcpAmEager;
    void* const request = api().am_send(endpoint_, kUcxMessageId, head.data(), head.size(), body.data(), body.size(), &params);
    check(!api().is_error(request), "sent");
    if (request != nullptr) api().request_free(request);
    api().worker_progress(worker_);
  }
  void say(UcxHeader header, std::vector<uint8_t> payload) {
    std::vector<uint8_t> bytes(kUcxHeaderBytes);
    header.encode(bytes.data(), payload);
    say(std::move(bytes), std::move(payload));
  }
  UcxHello hello(const TcpUuid& nonce) {
    UcxHello hello;
    hello.hello.uuid = self_.uuid;
    hello.hello.epoch = ++self_.epoch;
    hello.hello.nonce = nonce;
    hello.key = 4711 + self_.epoch;
    self_.nonce[1]++;
    hello.address = self_;
    return hello;
  }
  // Until something of this kind has come; its payload.
  std::vector<uint8_t> await(UcxKind kind) {
    const auto until = std::chrono::steady_clock::now() + kWaitMax;
    while (!heard_.contains(kind)) {
      api().worker_progress(worker_);
      check(std::chrono::steady_clock::now() < until, "waited too long for message " + std::to_string(static_cast<int>(kind)));
    }
    std::vector<uint8_t> payload = std::move(heard_.at(kind));
    heard_.erase(kind);
    return payload;
  }
  uint64_t meet() {
    say(UcxHeader{UcxKind::kHello, 0, 0, 0, 0}, hello(whom_.nonce).encode());
    UcxWelcome welcome;
    std::string error;
    check(UcxWelcome::decode(await(UcxKind::kWelcome), &welcome, &error) == Status::kOk, error);
    check(welcome.reply.verdict == TcpVerdict::kAccept && welcome.key != 0, welcome.reply.text);
    return welcome.key;
  }
  bool has_heard(UcxKind kind) const { return heard_.contains(kind); }

 private:
  const UcxApi& api() const { return context_->api(); }
  static UcsStatus heard(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes, const UcpAmReceived*) {
    UcxHeader decoded;
    std::string error;
    const auto* payload = static_cast<const uint8_t*>(data);
    check(UcxHeader::decode({static_cast<const uint8_t*>(header), header_bytes}, {payload, bytes}, &decoded, &error) == Status::kOk, error);
    static_cast<Stranger*>(argument)->heard_[decoded.kind].assign(payload, payload + bytes);
    return kUcsOk;
  }

  const UcxAddress whom_;
  UcxAddress self_;
  UcxContext* context_ = nullptr;
  void* worker_ = nullptr;
  void* endpoint_ = nullptr;
  std::map<UcxKind, std::vector<uint8_t>> heard_;
  std::list<std::pair<std::vector<uint8_t>, std::vector<uint8_t>>> said_;
};

void damaged_bytes(std::mt19937& random, uint32_t cases, const UcxAddress& address) {
  std::vector<uint8_t> whole;
  address.encode(&whole);
  UcxHello hello;
  hello.key = 5;
  hello.address = address;
  hello.hello.uuid = address.uuid;
  hello.hello.epoch = address.epoch;
  const std::vector<std::vector<uint8_t>> good = {whole, hello.encode(), UcxWelcome{3, {}}.encode(), UcxEnd{}.encode()};
  uint32_t refused = 0;
  for (uint32_t i = 0; i < cases * 10; i++) {
    std::vector<uint8_t> bytes = good[random() % good.size()];
    for (uint32_t flips = random() % 4; flips > 0; flips--) bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1 << random() % 8);
    if (random() % 2 == 0) bytes.resize(random() % (bytes.size() + 1));
    std::string error;
    UcxAddress one;
    UcxHello two;
    UcxWelcome three;
    UcxEnd four;
    UcxHeader five;
    refused += UcxAddress::decode(bytes, &one, &error) != Status::kOk;
    refused += UcxHello::decode(bytes, &two, &error) != Status::kOk;
    refused += UcxWelcome::decode(bytes, &three, &error) != Status::kOk;
    refused += UcxEnd::decode(bytes, &four, &error) != Status::kOk;
    refused += UcxHeader::decode(bytes, {}, &five, &error) != Status::kOk;
  }
  check(refused > cases * 20, "most of it is refused");
  std::string error;
  UcxAddress again;
  check(UcxAddress::decode(whole, &again, &error) == Status::kOk && again.worker == address.worker, "what is whole is taken");
  whole[whole.size() / 2] ^= 1;
  check(UcxAddress::decode(whole, &again, &error) != Status::kOk, "one bit");
}

TcpRequest request_for(uint32_t block, uint32_t generation) {
  TcpRequest request;
  request.own_pool = 3;
  request.peer_pool = 1;
  request.bytes = kBlockBytes;
  request.peer_blocks = {block};
  request.own_blocks = {0};
  request.generations = {generation};
  return request;
}

std::vector<uint8_t> encoded(const TcpRequest& request) {
  Operation operation;
  operation.remote_pool = request.peer_pool;
  operation.remote_blocks = request.peer_blocks;
  operation.local_blocks = request.own_blocks;
  operation.remote_generations = request.generations;
  std::vector<uint8_t> out;
  encode_request(request.own_pool, request.bytes, operation, 0, 1, &out);
  return out;
}

// A node with a ready block and a reserved one, and a stranger who talks to it.
struct Siege {
  explicit Siege(std::mt19937& given) : random(given), node(Node::make(ucx_transport(), kBlocks, kBlockBytes)) {
    ready = node.take(1000, true, &ready_generation);
    reserved = node.take(2000, false, &reserved_generation);
    address = address_of(node.agent->metadata());
    stranger = std::make_unique<Stranger>(address);
    std::string error;
    check(Layout::opaque(kBlockBytes, kBlockBytes, kBlocks, kBlocks * kBlockBytes, &layout, &error) == Status::kOk, error);
  }
  std::vector<uint8_t> garbage(size_t most) {
    std::vector<uint8_t> bytes(random() % (most + 1));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
  }
  void tell_layout() { stranger->say(UcxHeader{UcxKind::kLayout, 0, key, 0, 0}, TcpLayout::encode(3, layout)); }
  void ask(UcxKind kind, uint8_t flags, const TcpRequest& request, Status expected) {
    stranger->say(UcxHeader{kind, flags, key, ++op, 0}, encoded(request));
    TcpDone done;
    std::string error;
    check(TcpDone::decode(stranger->await(UcxKind::kDone), &done, &error) == Status::kOk && done.status == expected,
          std::string("answered with ") + status_name(done.status) + ": " + done.text);
  }

  std::mt19937& random;
  Node node;
  uint32_t ready = 0, ready_generation = 0, reserved = 0, reserved_generation = 0;
  UcxAddress address;
  std::unique_ptr<Stranger> stranger;
  Layout layout;
  uint64_t key = 0;
  uint64_t op = 0;
};

// Those who were told no key, or have not our metadata.
void unknown_senders(Siege& siege) {
  for (int i = 0; i < 20; i++) siege.stranger->say(siege.garbage(64), siege.garbage(300));
  for (int i = 0; i < 20; i++) {
    const auto kind = static_cast<UcxKind>(pick(siege.random, 1, 14));
    siege.stranger->say(UcxHeader{kind, 0, siege.random(), 1, 0}, siege.garbage(100));
  }
  TcpUuid other = siege.address.nonce;
  other[3] ^= 1;
  siege.stranger->say(UcxHeader{UcxKind::kHello, 0, 0, 0, 0}, siege.stranger->hello(other).encode());
  // An answer to it would have come before that to the next.
  siege.key = siege.stranger->meet();
  check(!siege.stranger->has_heard(UcxKind::kDone) && !siege.stranger->has_heard(UcxKind::kGrant), "nobody else is answered");
}

void forged_requests(Siege& siege) {
  const TcpRequest good = request_for(siege.ready, siege.ready_generation);
  siege.ask(UcxKind::kRead, kUcxDirect, good, Status::kNotFound);
  siege.tell_layout();
  for (const uint8_t flags : {uint8_t{0}, kUcxDirect}) {
    siege.ask(UcxKind::kRead, flags, request_for(siege.ready, siege.ready_generation + 1), Status::kStale);
    siege.ask(UcxKind::kWrite, flags, good, Status::kNotAllowed);
    siege.ask(UcxKind::kRead, flags, request_for(siege.reserved, siege.reserved_generation), Status::kNotAllowed);
    siege.ask(UcxKind::kRead, flags, request_for(kBlocks, 1), Status::kInvalid);
    TcpRequest foreign = good;
    foreign.peer_pool = 8;
    siege.ask(UcxKind::kRead, flags, foreign, Status::kNotFound);
    foreign = good;
    foreign.bytes++;
    siege.ask(UcxKind::kRead, flags, foreign, Status::kMismatch);
  }
}

// What was granted and then not done as it should be is let go again.
void broken_promises(Siege& siege, uint32_t cases) {
  for (uint32_t i = 0; i < cases; i++) {
    const uint8_t flags = siege.random() % 2 == 0 ? kUcxDirect : 0;
    siege.stranger->say(UcxHeader{UcxKind::kWrite, flags, siege.key, ++siege.op, 0},
                        encoded(request_for(siege.reserved, siege.reserved_generation)));
    siege.stranger->await(UcxKind::kGrant);
    const auto kind = static_cast<UcxKind>(pick(siege.random, 2, 14));
    const uint64_t op = siege.random() % 3 == 0 ? siege.random() : siege.op;
    siege.stranger->say(UcxHeader{kind, static_cast<uint8_t>(siege.random() % 4), siege.key, op, static_cast<uint32_t>(siege.random() % 2)},
                        siege.garbage(kBlockBytes * 2));
    siege.stranger->say(UcxHeader{UcxKind::kGoodbye, 0, siege.key, 0, 0}, {});
    // On one host a grant to move bytes outlives the line: the word of who has it counts to the end.
    siege.stranger->say(UcxHeader{UcxKind::kEnd, 0, siege.key, siege.op, 0}, UcxEnd{}.encode());
    siege.key = siege.stranger->meet();
    siege.op = 0;
    siege.tell_layout();
  }
}

}  // namespace

void ucx_hostile(std::mt19937& random, uint32_t cases) {
  Siege siege(random);
  damaged_bytes(random, cases, siege.address);
  unknown_senders(siege);
  forged_requests(siege);
  broken_promises(siege, cases / 20 + 3);
  Node& node = siege.node;
  check(holds(*node.pool, siege.ready, 1000), "no byte of a block that nobody may write");
  check(node.pool->table()->release(siege.ready, siege.ready_generation) == Status::kOk, "released");
  check(node.pool->table()->release(siege.reserved, siege.reserved_generation) == Status::kOk, "released too");
  node.pool->table()->settle();
  check(node.pool->table()->stats().free == kBlocks, "no block is held");
  siege.stranger->say(UcxHeader{UcxKind::kGoodbye, 0, siege.key, 0, 0}, {});
  check(node.agent->remove_pool(node.pool_id) == Status::kOk, "nor the pool");
}

}  // namespace millrace::kv::test
