// What a transport for other processes must do beyond the contract: layouts that differ, random cancels with canaries, and
// a peer that is killed in each phase of a transfer. Run by the suites of tcp and ucx.
#include "transport_faults.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kBlocks = 64;
constexpr uint32_t kBlockBytes = 256 * 1024;

// NHD to HND: pieces of 64 bytes, which go through buffers on both sides; and a model that differs.
void transforms(const MakeMaker& make) {
  Node nodes[3];
  std::string error;
  for (uint32_t i = 0; i < 3; i++) {
    AgentOptions options;
    options.name = "node";
    options.transports = {make().probe().name};
    options.more_transports = {make()};
    check(Agent::create(options, &nodes[i].agent, &error) == Status::kOk, error);
    PagedKvShape shape;
    shape.layers = 3;
    shape.block_tokens = 16;
    shape.heads = shape.heads_total = 8;
    shape.head_dim = i == 2 ? 64 : 32;
    shape.element_bytes = 2;
    shape.inner_order = i == 1 ? InnerOrder::kHnd : InnerOrder::kNhd;
    std::unique_ptr<Pool> pool;
    check(Pool::create(4u << 20, "test", &pool, &error) == Status::kOk, error);
    Layout layout;
    check(Layout::paged_kv(shape, 40, pool->bytes(), "m", &layout, &error) == Status::kOk, error);
    pool->set_layout(layout);
    nodes[i].pool = pool.get();
    check(nodes[i].agent->add_pool(std::move(pool), &nodes[i].pool_id, &error) == Status::kOk, error);
  }
  auto* const words = reinterpret_cast<uint16_t*>(nodes[1].pool->address());
  for (size_t i = 0; i < nodes[1].pool->bytes() / 2; i++) words[i] = static_cast<uint16_t>(i * 40503u >> 3);
  TransferRequest request;
  request.local_pool = nodes[0].pool_id;
  request.remote_pool = nodes[1].pool_id;
  request.integrity = Integrity::kFull;
  for (uint32_t i = 0; i < 40; i++) {
    request.local_blocks.push_back(i);
    request.remote_blocks.push_back((i * 7 + 3) % 40);
  }
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    const bool reads = direction == Direction::kRead;
    Node& here = nodes[reads ? 0 : 1];
    Node& there = nodes[reads ? 1 : 0];
    request.peer = here.meet(there);
    request.direction = direction;
    if (!reads) std::swap(request.local_blocks, request.remote_blocks);
    std::memset(nodes[0].pool->address(), 0, nodes[0].pool->bytes());
    const int64_t id = here.agent->submit(request, &error);
    check(id > 0, error);
    check(here.completion(id).status == Status::kOk, "moved");
    // The plan itself is tested against elements elsewhere.
    std::shared_ptr<const Transform> transform;
    check(Transform::make(nodes[1].pool->layout(), nodes[0].pool->layout(), {}, &transform, &error) == Status::kOk, error);
    std::vector<Run> runs;
    const std::vector<uint32_t>& from = reads ? request.remote_blocks : request.local_blocks;
    const std::vector<uint32_t>& to = reads ? request.local_blocks : request.remote_blocks;
    check(transform->lower(from.data(), to.data(), 40, &runs, &error) == Status::kOk, error);
    for (const Run& run : runs)
      for (uint32_t i = 0; i < run.count; i++)
        check(std::memcmp(nodes[1].pool->address() + run.source + i * run.source_stride,
                          nodes[0].pool->address() + run.target + i * run.target_stride, run.length) == 0, "each run has its bytes");
  }
  request.peer = nodes[0].meet(nodes[2]);
  request.remote_pool = nodes[2].pool_id;
  check(nodes[0].agent->submit(request, &error) == static_cast<int64_t>(Status::kMismatch), "layouts that do not go together");
  check(error.find("head_dim differs: 64") != std::string::npos || error.find("head_dim differs: 32") != std::string::npos, error);
}

// Reads and writes that are cancelled at any time; blocks are given a new tag at once when their transfer has completed, and
// must keep it.
void cancels(const MakeMaker& make, std::mt19937& random, uint32_t rounds) {
  Node a = Node::make(make(), kBlocks, kBlockBytes);
  Node b = Node::make(make(), kBlocks, kBlockBytes);
  const uint32_t to_b = a.meet(b);
  b.meet(a);
  std::string error;
  uint32_t moved = 0, cancelled = 0;
  // On, where the machine's load has let none of the one or the other happen.
  const auto has_both = [&] { return moved > 0 && cancelled > 0; };
  for (uint32_t round = 0; round < rounds || (!has_both() && round < 50 * rounds); round++) {
    const bool reads = random() % 2 == 0;
    const uint32_t count = pick(random, 1, 16);
    TransferRequest request;
    request.peer = to_b;
    request.direction = reads ? Direction::kRead : Direction::kWrite;
    request.local_pool = a.pool_id;
    request.remote_pool = b.pool_id;
    request.integrity = static_cast<Integrity>(random() % 3);
    const uint64_t tag = uint64_t{round + 1} << 32;
    for (uint64_t i = 0; i < count; i++) {
      uint32_t generation;
      request.local_blocks.push_back(a.take(reads ? 1 : tag + (i << 20), !reads, &generation));
      request.local_generations.push_back(generation);
      request.remote_blocks.push_back(b.take(reads ? tag + (i << 20) : 1, reads, &generation));
      request.remote_generations.push_back(generation);
    }
    const int64_t id = a.agent->submit(request, &error);
    check(id > 0, error);
    for (uint32_t spins = pick(random, 0, 1u << pick(random, 0, 10)); spins > 0; spins--) std::this_thread::yield();
    if (random() % 4 != 0) a.agent->cancel(static_cast<uint64_t>(id));
    const Event done = a.completion(id);
    check(done.status == Status::kOk || done.status == Status::kCancelled, std::string("ended as ") + status_name(done.status));
    (done.status == Status::kOk ? moved : cancelled)++;
    Node& target = reads ? a : b;
    const std::vector<uint32_t>& targets = reads ? request.local_blocks : request.remote_blocks;
    for (uint64_t i = 0; i < count; i++)
      check(done.status != Status::kOk || holds(*target.pool, targets[i], tag + (i << 20)), "what is done has its bytes");
    // The canary, and a transfer after it that would push late bytes through.
    for (const uint32_t block : targets) fill(*target.pool, block, ~tag);
    const uint8_t word[] = {1};
    check(a.agent->notify(to_b, word) == Status::kOk, "a notification");
    b.wait("a notification", [](const Event& e) { return e.kind == EventKind::kNotification; });
    for (const uint32_t block : targets) check(holds(*target.pool, block, ~tag), "no byte after the completion");
    for (size_t i = 0; i < count; i++) {
      check(a.pool->table()->release(request.local_blocks[i], request.local_generations[i]) == Status::kOk, "released here");
      check(b.pool->table()->release(request.remote_blocks[i], request.remote_generations[i]) == Status::kOk, "released there");
    }
    a.pool->table()->settle();
    b.pool->table()->settle();
  }
  check(has_both(), "some were cancelled, and some were not: " + std::to_string(moved) + " and " + std::to_string(cancelled));
}

void write_blob(int descriptor, const std::vector<uint8_t>& bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  check(write(descriptor, &size, sizeof(size)) == sizeof(size) && write(descriptor, bytes.data(), size) == static_cast<ssize_t>(size), "told");
}

std::vector<uint8_t> read_blob(int descriptor) {
  uint32_t size = 0;
  check(read(descriptor, &size, sizeof(size)) == sizeof(size) && size < kMetadataBytesMax, "heard");
  std::vector<uint8_t> bytes(size);
  for (size_t have = 0; have < size;) {
    const ssize_t got = read(descriptor, bytes.data() + have, size - have);
    check(got > 0, "heard");
    have += static_cast<size_t>(got);
  }
  return bytes;
}

// Another process with an agent whose even blocks are ready and odd ones reserved, under generation 1, until it is killed.
pid_t start_child(const MakeMaker& make, int* from_child) {
  int ends[2];
  check(pipe(ends) == 0, "a pipe");
  const pid_t child = fork();
  check(child >= 0, "a child");
  if (child != 0) {
    close(ends[1]);
    *from_child = ends[0];
    return child;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Node node = Node::make(make(), kBlocks, kBlockBytes);
  std::vector<uint8_t> generations;
  for (uint32_t i = 0; i < kBlocks; i++) {
    uint32_t generation;
    const uint32_t block = node.take(uint64_t{i} << 32, i % 2 == 0, &generation);
    generations.insert(generations.end(), {static_cast<uint8_t>(block), static_cast<uint8_t>(generation)});
  }
  write_blob(ends[1], node.agent->metadata());
  write_blob(ends[1], generations);
  for (;;) pause();
}

// Two processes; the other is killed before it is connected, while its bytes come, while ours go, and at rest.
void kills(const MakeMaker& make, std::mt19937& random) {
  uint32_t tries = 0;
  for (int phase = 0; phase < 4; phase++) {
    uint32_t lost = 0;
    int from_child;
    const pid_t child = start_child(make, &from_child);
    const std::vector<uint8_t> metadata = read_blob(from_child);
    const std::vector<uint8_t> blocks = read_blob(from_child);
    close(from_child);
    Node node = Node::make(make(), kBlocks, kBlockBytes);
    const auto kill_it = [&] {
      kill(child, SIGKILL);
      check(waitpid(child, nullptr, 0) == child, "killed");
    };
    if (phase == 0) kill_it();
    std::string error;
    TransferRequest request;
    const Status added = node.agent->add_peer(metadata, &request.peer, &error);
    // A transport that sees at once that nobody is there says so.
    if (phase == 0 && added == Status::kUnsupported) continue;
    check(added == Status::kOk, error);
    request.direction = phase == 2 ? Direction::kWrite : Direction::kRead;
    request.local_pool = node.pool_id;
    request.remote_pool = 1;
    for (uint32_t i = phase == 2 ? 1 : 0; i < kBlocks; i += 2) {
      uint32_t generation;
      request.local_blocks.push_back(node.take(uint64_t{i} << 32, phase == 2, &generation));
      request.remote_blocks.push_back(blocks[i * 2]);
      request.remote_generations.push_back(blocks[i * 2 + 1]);
    }
    const auto run = [&] {
      const int64_t id = node.agent->submit(request, &error);
      return id < 0 ? static_cast<Status>(id) : node.completion(id).status;
    };
    if (phase != 0) {
      check(run() == Status::kOk, "moved between processes");
      for (size_t i = 0; i < request.local_blocks.size() && phase != 2; i++)
        check(holds(*node.pool, request.local_blocks[i], uint64_t{i} * 2 << 32), "the other process's bytes");
    }
    if (phase == 3) kill_it();
    std::vector<int64_t> running;
    for (int i = 0; i < 8 && (phase == 1 || phase == 2); i++) running.push_back(node.agent->submit(request, &error));
    for (uint32_t spins = static_cast<uint32_t>(random() % 2048); spins > 0; spins--) std::this_thread::yield();
    if (phase == 1 || phase == 2) kill_it();
    for (const int64_t id : running) {
      const Status status = id > 0 ? node.completion(id).status : static_cast<Status>(id);
      check(status == Status::kOk || status == Status::kPeerLost, std::string("ended as ") + status_name(status));
      lost += id > 0 && status == Status::kPeerLost;
    }
    Status status = Status::kOk;
    while (status == Status::kOk) status = run();
    check(status == Status::kPeerLost, std::string("afterwards ") + status_name(status));
    node.wait("the loss of the peer", [](const Event& event) { return event.kind == EventKind::kPeerLost; });
    check(node.agent->remove_pool(node.pool_id) == Status::kOk, "nothing is in flight any more");
    if (phase != 1 && phase != 2) continue;
    // The kill may come when all has been moved already; it has to come in the middle once.
    check(lost > 0 || ++tries < 50, "a peer was killed in the middle of a transfer");
    if (lost == 0) phase--;
  }
}

}  // namespace

void fault_suite(const MakeMaker& make, std::mt19937& random, uint32_t rounds) {
  // First, while this process has one thread.
  kills(make, random);
  transforms(make);
  cancels(make, random, rounds);
}

}  // namespace millrace::kv::test
