// Ports: several threads post through one agent each by its own port; every word of a port is written over at random while the
// agent serves it; ports are closed, left and outlived by their agents in every phase.
#include "check.h"

#include <atomic>
#include <set>

#include "memory_transport.h"
#include "millrace/port_descriptor.h"
#include "node.h"
#include "port.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kEntries = 16;
constexpr uint32_t kArenaWords = 256;
constexpr uint32_t kBlocks = 8;

// The side of a port's thread, as transfer/port-rings.ts has it; its memory has exactly the size of the port.
class Client {
 public:
  explicit Client(Node& node) : shape_{kEntries, kArenaWords}, memory_(new (std::align_val_t{64}) uint32_t[shape_.words()]()) {
    port = std::make_shared<Port>(memory_, shape_);
    std::string error;
    check(node.agent->add_port(port, &error) == Status::kOk, error);
  }
  ~Client() {
    check(port->is_over(), "the memory outlives its port");
    ::operator delete[](memory_, std::align_val_t{64});
  }
  Client(const Client&) = delete;

  std::atomic_ref<uint32_t> at(size_t word) { return std::atomic_ref<uint32_t>(memory_[word]); }
  size_t entry() const { return kPortHeaderWords + kEntries + (posted_ % kEntries) * kPortEntryWords; }
  size_t completion() const {
    return kPortHeaderWords + kEntries * (1 + kPortEntryWords) + (polled_ % kEntries) * kPortCompletionWords;
  }
  size_t arena() const { return shape_.words() - kArenaWords; }
  size_t words() const { return shape_.words(); }

  void put(uint32_t tag, uint32_t peer, const Node& from, const Node& to, uint32_t block, uint32_t remote,
           uint32_t generation) {
    const uint32_t place = posted_ % kEntries * 3;
    const uint32_t lists[] = {block, remote, generation};
    for (uint32_t i = 0; i < 3; i++) at(arena() + place + i) = lists[i];
    const size_t e = entry();
    for (uint32_t i = 1; i < kPortEntryWords; i++) at(e + i) = 0;
    at(e + kPortEntryTag) = tag;
    at(e + kPortEntryPeer) = peer;
    at(e + kPortEntryLocalPool) = from.pool_id;
    at(e + kPortEntryRemotePool) = to.pool_id;
    at(e + kPortEntryBlocks) = 1;
    at(e + kPortEntryLists) = place;
    at(e + kPortEntryFlags) = 1u << kPortFlagShiftDirection | 1u << kPortFlagShiftGenerations;
  }
  void submit() {
    at(entry() + kPortEntryTurn) = posted_ + 1;
    posted_++;
    if (at(kPortSleeping) != 0) port->kick();
  }
  void cancel(uint32_t tag, uint32_t turn) {
    at(kPortHeaderWords + tag) = turn << 1 | 1;
    at(kPortCancels)++;
    if (at(kPortSleeping) != 0) port->kick();
  }
  bool poll(uint32_t* tag, Status* status) {
    if (at(completion() + kPortCompletionTurn) != polled_ + 1) return false;
    *tag = at(completion() + kPortCompletionTag);
    *status = static_cast<Status>(at(completion() + kPortCompletionStatus).load());
    at(kPortPolled) = ++polled_;
    return true;
  }
  uint32_t posted() const { return posted_; }

  std::shared_ptr<Port> port;

 private:
  const PortShape shape_;
  uint32_t* memory_;
  uint32_t posted_ = 0, polled_ = 0;
};

struct Pair {
  Node a, b;
  uint32_t to_b = 0;
  uint32_t local[kBlocks], remote[kBlocks], generations[kBlocks];

  explicit Pair(uint32_t block_bytes = 512)
      : a(Node::make(memory_transport({}), kBlocks, block_bytes)), b(Node::make(memory_transport({}), kBlocks, block_bytes)) {
    to_b = a.meet(b);
    b.meet(a);
    for (uint32_t i = 0; i < kBlocks; i++) {
      uint32_t ignored;
      local[i] = a.take(i << 16, true, &ignored);
      remote[i] = b.take(0, false, &generations[i]);
    }
  }
};

template <class Done>
void until(const std::string& what, const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kWaitMax;
  while (!done()) {
    check(std::chrono::steady_clock::now() < end, "waited too long for " + what);
    std::this_thread::yield();
  }
}

// One transfer of the client's, alone in its port.
Status one(Client& client, const Pair& pair, uint32_t block) {
  uint32_t tag;
  Status status = Status::kOk;
  client.put(0, pair.to_b, pair.a, pair.b, pair.local[block], pair.remote[block], pair.generations[block]);
  client.submit();
  until("a completion", [&] { return client.poll(&tag, &status); });
  check(tag == 0, "of the one that was posted");
  return status;
}

// Each of several threads has a port of its own, keeps it as full as it goes and cancels now and then: every transfer completes
// once, and the bytes of those that are done are there.
void many_threads(uint32_t each) {
  constexpr uint32_t kThreads = 2;
  Pair pair;
  std::vector<std::unique_ptr<Client>> clients;
  for (uint32_t i = 0; i < kThreads; i++) clients.push_back(std::make_unique<Client>(pair.a));
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kThreads; i++) {
    threads.emplace_back([&, i] {
      Client& client = *clients[i];
      std::set<uint32_t> free;
      for (uint32_t tag = 0; tag < kEntries; tag++) free.insert(tag);
      uint32_t done = 0;
      check(client.port->open([] {}) == Status::kOk && client.port->open([] {}) == Status::kBusy, "opened once");
      until("all of them", [&] {
        if (client.posted() < each && !free.empty()) {
          const uint32_t tag = *free.begin();
          free.erase(tag);
          const uint32_t block = i * (kBlocks / kThreads) + client.posted() % (kBlocks / kThreads);
          client.put(tag, pair.to_b, pair.a, pair.b, pair.local[block], pair.remote[block], pair.generations[block]);
          client.submit();
          if (client.posted() % 8 == 0) client.cancel(tag, client.posted());
        }
        uint32_t tag;
        Status status;
        while (client.poll(&tag, &status)) {
          check(status == Status::kOk || status == Status::kCancelled, status_name(status));
          check(tag < kEntries && free.insert(tag).second, "each completes once");
          done++;
        }
        return done == each;
      });
      client.port->leave();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& client : clients) until("the end of a port", [&] { return client->port->is_over(); });
  for (uint32_t i = 0; i < kBlocks; i++) check(holds(*pair.b.pool, pair.remote[i], i << 16), "and their bytes");
}

uint32_t random_word(std::mt19937& random) {
  switch (random() % 5) {
    case 0: return random() % 4;
    case 1: return random() % (2 * kArenaWords);
    case 2: return UINT32_MAX - random() % 4;
    case 3: return 1u << random() % 32;
    default: return static_cast<uint32_t>(random());
  }
}

// Whatever stands in the words of one port, and whenever it is written there: the agent goes on, and another port is served.
void hostile(std::mt19937& random, uint32_t cases) {
  Pair pair;
  Client honest(pair.a);
  uint32_t seen[15] = {};
  for (uint32_t round = 0; round < cases / 100 + 1; round++) {
    Client client(pair.a);
    for (uint32_t i = 0; i < 100; i++) {
      const uint32_t block = random() % kBlocks;
      client.put(random() % kEntries, pair.to_b, pair.a, pair.b, pair.local[block], pair.remote[block],
                 pair.generations[block]);
      for (uint32_t change = random() % 3; change > 0; change--)
        client.at(client.entry() + 1 + random() % (kPortEntryWords - 1)) = random_word(random);
      client.submit();
      // While it is being read.
      for (uint32_t change = random() % 4; change > 0; change--) {
        // Half of them anywhere; seldom the turns and the header, which would end the conversation.
        const bool is_entry = random() % 2 == 0;
        const size_t word = is_entry ? client.entry() + 1 + random() % (kPortEntryWords - 1) : random() % client.words();
        if (!is_entry && word < kPortHeaderWords + kEntries && random() % 8 != 0) continue;
        client.at(word) = random_word(random);
      }
      uint32_t tag;
      Status status;
      while (client.poll(&tag, &status)) {
        const auto number = static_cast<uint32_t>(-static_cast<int32_t>(status));
        if (number < std::size(seen)) seen[number]++;
      }
    }
    check(one(honest, pair, round % kBlocks) == Status::kOk, "another port is served");
    client.port->close();
    until("the end of a hostile port", [&] { return client.port->is_over(); });
  }
  check(seen[0] > 0 && seen[1] > 0 && (cases < 1000 || seen[2] > 0), "some are good, some refused");
  honest.port->close();
  until("the end of a port", [&] { return honest.port->is_over(); });
  std::vector<Event> events;
  check(pair.a.agent->poll(64, &events) <= 64, "and its events");
  for (const Event& event : events) check(event.kind != EventKind::kCompletion, "completions of ports are no events");
}

// A port is closed with transfers before, in and behind the agent; the agent is closed under a port; a port that never began.
void ends(std::mt19937& random, uint32_t rounds) {
  for (uint32_t round = 0; round < rounds; round++) {
    Pair pair(64 * 1024);
    Client client(pair.a), idle(pair.a);
    const uint32_t posts = random() % (kEntries + 1);
    for (uint32_t tag = 0; tag < posts; tag++) {
      const uint32_t block = tag % kBlocks;
      client.put(tag, pair.to_b, pair.a, pair.b, pair.local[block], pair.remote[block], pair.generations[block]);
      client.submit();
    }
    for (uint32_t spin = random() % 20'000; spin > 0; spin--) client.at(kPortState).load();
    switch (round % 3) {
      case 0: client.port->close(); break;
      case 1: client.port->leave(); break;
      default: pair.a.agent->close();
    }
    until("the end of a port", [&] { return client.port->is_over(); });
    check(client.at(kPortState) == kPortStateEnded, "and says so");
    uint32_t tag;
    Status status;
    std::set<uint32_t> completed;
    while (client.poll(&tag, &status)) {
      check(completed.insert(tag).second, "each completes once");
      check(status == Status::kOk || status == Status::kCancelled || status == Status::kClosed, status_name(status));
    }
    check(completed.size() == client.at(kPortTaken), "all that was taken has completed");
    check(client.port->open([] {}) == Status::kClosed, "it is over");
    client.port->kick();
    pair.a.agent->close();
    check(idle.port->is_over(), "with its agent");
    std::string error;
    check(pair.a.agent->add_port(client.port, &error) == Status::kClosed, "no more ports");
  }
}

}  // namespace

void port_checks(std::mt19937& random, uint32_t cases) {
  many_threads(cases / 2 + 200);
  hostile(random, cases);
  ends(random, cases / 100 + 12);
}

}  // namespace millrace::kv::test
