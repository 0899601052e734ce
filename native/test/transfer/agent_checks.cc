// Transports run the contract; several threads submit at once; metadata is damaged at random; checksums against the definition.
#include "check.h"

#include <atomic>
#include <set>

#include "crc32c.h"
#include "memory_transport.h"
#include "metadata.h"
#include "node.h"
#include "transport_contract.h"
#include "transports.h"

namespace millrace::kv::test {
namespace {

uint32_t crc32c_by_bits(uint32_t before, std::span<const uint8_t> bytes) {
  uint32_t crc = ~before;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f6'3b78u : 0);
  }
  return ~crc;
}

Metadata random_metadata(std::mt19937& random) {
  Metadata metadata;
  for (uint8_t& byte : metadata.uuid) byte = static_cast<uint8_t>(random());
  metadata.epoch = random();
  metadata.name = std::string(pick(random, 0, 20), 'n');
  std::string error;
  for (uint32_t i = pick(random, 0, 3); i > 0; i--) {
    PoolDescription pool;
    pool.id = i;
    pool.has_generations = random() % 2 == 0;
    check(Layout::opaque(512, 512, pick(random, 1, 9), 1 << 16, &pool.layout, &error) == Status::kOk, error);
    metadata.pools.push_back(pool);
  }
  for (uint32_t i = pick(random, 0, 3); i > 0; i--)
    metadata.transports.push_back({"t" + std::to_string(i), std::vector<uint8_t>(pick(random, 0, 40), 1)});
  return metadata;
}

// Several threads submit, notify and cancel at once, and one polls: every transfer completes once, every notification comes
// in its thread's order, and the number of transfers is bounded.
void many_submitters(uint32_t each) {
  constexpr uint32_t kThreads = 3;
  Node a = Node::make(memory_transport({}), kThreads, 4096, {}, 64);
  Node b = Node::make(memory_transport({}), kThreads, 4096);
  const uint32_t to_b = a.meet(b);
  b.meet(a);
  uint32_t local[kThreads], remote[kThreads], generations[kThreads];
  for (uint32_t i = 0; i < kThreads; i++) {
    uint32_t ignored;
    local[i] = a.take(i << 16, true, &ignored);
    remote[i] = b.take(0, false, &generations[i]);
  }
  std::atomic<uint32_t> full{0};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kThreads; i++) {
    threads.emplace_back([&, i] {
      std::string error;
      for (uint32_t sent = 0; sent < each;) {
        TransferRequest request;
        request.peer = to_b;
        request.direction = Direction::kWrite;
        request.local_pool = a.pool_id;
        request.remote_pool = b.pool_id;
        request.local_blocks = {local[i]};
        request.remote_blocks = {remote[i]};
        request.remote_generations = {generations[i]};
        const int64_t id = a.agent->submit(std::move(request), &error);
        check(id > 0 || id == static_cast<int64_t>(Status::kFull), error);
        if (id < 0) full++;
        if (id < 0) continue;
        if (sent % 8 == 0) a.agent->cancel(static_cast<uint64_t>(id));
        const uint8_t note[] = {static_cast<uint8_t>(i), static_cast<uint8_t>(sent), static_cast<uint8_t>(sent >> 8)};
        while (a.agent->notify(to_b, note) == Status::kFull) std::this_thread::yield();
        sent++;
      }
    });
  }
  std::set<uint64_t> done;
  uint32_t noted[kThreads] = {};
  const auto until = std::chrono::steady_clock::now() + kWaitMax;
  while (done.size() < kThreads * each || noted[0] + noted[1] + noted[2] < kThreads * each) {
    std::vector<Event> events;
    a.agent->poll(16, &events);
    for (const Event& event : events)
      check(event.kind != EventKind::kCompletion || done.insert(event.id).second, "each completes once");
    events.clear();
    b.agent->poll(16, &events);
    for (const Event& event : events) {
      if (event.kind != EventKind::kNotification) continue;
      const uint8_t* const note = event.notification.data();
      check((noted[note[0]]++ & 0xffff) == static_cast<uint32_t>(note[1] | note[2] << 8), "in order");
    }
    check(std::chrono::steady_clock::now() < until, "all of them come");
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t i = 0; i < kThreads; i++) check(holds(*b.pool, remote[i], i << 16), "and their bytes");
}

}  // namespace

void crc_random(std::mt19937& random, uint32_t cases) {
  const uint8_t digits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
  check(crc32c(0, digits, 9) == 0xe306'9283u, "the check value of the polynomial");
  // Where bytes begin and how many they are decides which of a way's loops they go through.
  std::vector<uint8_t> buffer(64 * 1024 + 64);
  for (uint8_t& byte : buffer) byte = static_cast<uint8_t>(random());
  for (uint32_t i = 0; i < cases; i++) {
    const size_t most = i % 64 == 0 ? 64 * 1024 : i % 8 == 0 ? 8192 : 600;
    const std::span<const uint8_t> bytes(buffer.data() + random() % 64, random() % (most + 1));
    const auto before = static_cast<uint32_t>(i % 2 == 0 ? 0 : random());
    const uint32_t expected = crc32c_by_bits(before, bytes);
    const size_t cut = random() % (bytes.size() + 1);
    for (const Crc32cWay& way : crc32c_ways()) {
      check(way.of(before, bytes.data(), bytes.size()) == expected, way.name);
      const uint32_t first = way.of(before, bytes.data(), cut);
      check(way.of(first, bytes.data() + cut, bytes.size() - cut) == expected, "in two parts");
    }
    check(crc32c(before, bytes.data(), bytes.size()) == expected, "by the fastest way");
  }
}

// Bytes of a stranger: whatever they are, the answer is a status with words, and what is accepted is a blob again.
void metadata_random(std::mt19937& random, uint32_t cases) {
  uint32_t accepted = 0, mismatched = 0, invalid = 0;
  std::string error;
  for (uint32_t i = 0; i < cases; i++) {
    std::vector<uint8_t> blob = random_metadata(random).encode();
    const std::vector<uint8_t> whole = blob;
    Metadata out;
    check(Metadata::decode(blob, &out, &error) == Status::kOk, error);
    check(out.encode() == whole, "there and back");
    for (uint32_t change = random() % 4; change > 0; change--) {
      switch (random() % 3) {
        case 0: blob[random() % blob.size()] = static_cast<uint8_t>(random()); break;
        case 1: blob.resize(1 + random() % blob.size()); break;
        default: blob.insert(blob.begin() + static_cast<ptrdiff_t>(random() % blob.size()), pick(random, 1, 9), 0xff);
      }
    }
    // Half of them with a checksum that is right, so that what lies behind it is reached.
    if (random() % 2 == 0 && blob.size() > 4) {
      const uint32_t crc = crc32c(0, blob.data(), blob.size() - 4);
      std::memcpy(blob.data() + blob.size() - 4, &crc, sizeof(crc));
    }
    error.clear();
    const Status status = Metadata::decode(blob, &out, &error);
    check(status == Status::kOk || !error.empty(), "says why");
    accepted += status == Status::kOk;
    mismatched += status == Status::kMismatch;
    invalid += status == Status::kInvalid;
  }
  check(cases < 1000 || (accepted > 0 && mismatched > 0 && invalid > 0), "each answer was given");
}

// One peer after another, more of them than are remembered.
void many_lives() {
  Node node = Node::make(memory_transport({}), 1, 4096);
  Node other = Node::make(memory_transport({}), 1, 4096);
  Metadata metadata;
  std::string error;
  check(Metadata::decode(other.agent->metadata(), &metadata, &error) == Status::kOk, error);
  for (uint32_t life = 1; life < 4 * kPeersMax + 10; life++) {
    std::memcpy(metadata.uuid.data(), &life, sizeof(life));
    uint32_t peer;
    check(node.agent->add_peer(metadata.encode(), &peer, &error) == Status::kOk, error);
    check(node.agent->remove_peer(peer) == Status::kOk, "removed");
    node.heard.clear();
    node.agent->poll(64, &node.heard);
  }
}

void transport_contracts() {
  many_lives();
  many_submitters(300);
  MemoryOptions stuck;
  stuck.faults.drop = 10'000;
  contract_suite({[] { return memory_transport({}); }, [stuck] { return memory_transport(stuck); }});
  contract_suite({shm_transport, {}});
  contract_suite({cma_transport, {}});
}

}  // namespace millrace::kv::test
