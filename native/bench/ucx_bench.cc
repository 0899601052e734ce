// The ucx transport against memcpy of the same list: `ucx_bench [rounds]`, with UCX_TLS=posix or another set of lanes. Two
// agents of one process, pools in memory that UCX allocated, random blocks, a new part of the lists for every round; the
// methods take turns and medians are compared, so that what else runs on the machine meets all of them. Prints one JSON
// object per row. Built with -O3 from native/transfer and native/transport.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <numeric>
#include <random>
#include <vector>

#include "agent.h"
#include "ucx_transport.h"

namespace {

using namespace millrace::kv;

constexpr uint64_t kPoolBytes = uint64_t{256} << 20;
constexpr uint32_t kBatch = 1024;
// Transfers at once, as users of an agent have them: the peer's answer to one comes while another moves.
constexpr uint32_t kInFlight = 4;

uint64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

struct Side {
  // Raised by the agent when it has events. Whoever waits must sleep: two processors are for two progress threads.
  std::atomic<uint32_t> woken{0};
  std::unique_ptr<UcxMemory> memory;
  std::unique_ptr<Agent> agent;
  uint8_t* address = nullptr;
  uint32_t pool = 0;

  explicit Side(uint64_t block_bytes, bool is_mapped) {
    std::string error;
    AgentOptions options;
    options.name = "bench";
    options.transports = {"ucx"};
    options.wake = [this] {
      woken.store(1, std::memory_order_release);
      woken.notify_one();
    };
    require(Agent::create(options, &agent, &error) == Status::kOk, error);
    std::unique_ptr<Pool> made;
    if (is_mapped) {
      require(UcxMemory::allocate(kPoolBytes, &memory, &error) == Status::kOk, error);
      require(Pool::wrap(memory->address(), kPoolBytes, MemoryKind::kHost, 0, &made, &error) == Status::kOk, error);
    } else {
      require(Pool::create(kPoolBytes, "bench", &made, &error) == Status::kOk, error);
    }
    address = made->address();
    for (uint64_t i = 0; i < kPoolBytes; i += 8) std::memcpy(address + i, &i, 8);
    Layout layout;
    require(Layout::opaque(block_bytes, block_bytes, static_cast<uint32_t>(kPoolBytes / block_bytes), kPoolBytes, &layout, &error) ==
                Status::kOk,
            error);
    made->set_layout(layout);
    require(agent->add_pool(std::move(made), &pool, &error) == Status::kOk, error);
  }
};

std::vector<uint32_t> shuffled(uint32_t count, uint32_t seed) {
  std::vector<uint32_t> list(count);
  std::iota(list.begin(), list.end(), 0);
  std::shuffle(list.begin(), list.end(), std::mt19937(seed));
  return list;
}

double median(std::vector<uint64_t> times) {
  std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2), times.end());
  return static_cast<double>(times[times.size() / 2]);
}

uint64_t transfer(Side& here, const std::vector<TransferRequest>& requests) {
  std::string error;
  std::vector<Event> events;
  const uint64_t begin = now_ns();
  for (const TransferRequest& request : requests) require(here.agent->submit(request, &error) > 0, error);
  for (size_t done = 0; done < requests.size();) {
    events.clear();
    here.woken.wait(0, std::memory_order_acquire);
    here.woken.store(0, std::memory_order_relaxed);
    while (here.agent->poll(16, &events) > 0) continue;
    for (const Event& event : events) {
      if (event.kind != EventKind::kCompletion) continue;
      require(event.status == Status::kOk, status_name(event.status));
      done++;
    }
  }
  return now_ns() - begin;
}

void row(uint64_t block_bytes, Direction direction, bool is_mapped, uint32_t rounds) {
  Side here(block_bytes, is_mapped);
  Side there(block_bytes, is_mapped);
  std::string error;
  TransferRequest request;
  require(here.agent->add_peer(there.agent->metadata(), &request.peer, &error) == Status::kOk, error);
  require(there.agent->add_peer(here.agent->metadata(), &request.peer, &error) == Status::kOk, error);
  request.peer = 1;
  request.direction = direction;
  request.local_pool = here.pool;
  request.remote_pool = there.pool;
  const auto count = static_cast<uint32_t>(kPoolBytes / block_bytes);
  const uint32_t batch = std::min(kBatch, count);
  const std::vector<uint32_t> local = shuffled(count, 1);
  const std::vector<uint32_t> remote = shuffled(count, 2);
  const bool reads = direction == Direction::kRead;
  std::vector<uint64_t> copies, transfers;
  uint32_t at = 0;
  const auto next = [&] {
    std::vector<TransferRequest> requests(kInFlight, request);
    for (TransferRequest& made : requests) {
      if (at + batch > count) at = 0;
      made.local_blocks.assign(local.begin() + at, local.begin() + at + batch);
      made.remote_blocks.assign(remote.begin() + at, remote.begin() + at + batch);
      at += batch;
    }
    return requests;
  };
  const auto ours = [&](const TransferRequest& made, uint32_t i) { return here.address + made.local_blocks[i] * block_bytes; };
  const auto theirs = [&](const TransferRequest& made, uint32_t i) { return there.address + made.remote_blocks[i] * block_bytes; };
  // Once over both pools, so that every page is mapped wherever it will be.
  for (uint32_t i = 0; i < count; i += batch * kInFlight) transfer(here, next());
  for (uint32_t i = 0; i < rounds; i++) {
    const std::vector<TransferRequest> copied = next();
    const uint64_t begin = now_ns();
    for (const TransferRequest& made : copied) {
      for (uint32_t block = 0; block < batch; block++)
        std::memcpy(reads ? ours(made, block) : theirs(made, block), reads ? theirs(made, block) : ours(made, block), block_bytes);
    }
    copies.push_back(now_ns() - begin);
    const std::vector<TransferRequest> moved = next();
    transfers.push_back(transfer(here, moved));
    for (const TransferRequest& made : moved) {
      for (uint32_t block = 0; block < batch; block += 97)
        require(std::memcmp(ours(made, block), theirs(made, block), block_bytes) == 0, "the bytes are there");
    }
  }
  const double bytes = static_cast<double>(block_bytes) * batch * kInFlight;
  std::printf("{\"transport\":\"ucx\",\"lanes\":\"%s\",\"mode\":\"%s\",\"op\":\"%s\",\"blockBytes\":%lu,\"blocks\":%u,\"inFlight\":%u,\"gbPerSecond\":%.2f,"
              "\"memcpyGbPerSecond\":%.2f,\"ratio\":%.3f}\n",
              std::getenv("UCX_TLS") == nullptr ? "all" : std::getenv("UCX_TLS"), is_mapped ? "direct" : "messages",
              reads ? "read" : "write", static_cast<unsigned long>(block_bytes), batch, kInFlight, bytes / median(transfers),
              bytes / median(copies), median(copies) / median(transfers));
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** words) {
  const uint32_t rounds = count > 1 ? static_cast<uint32_t>(std::strtoul(words[1], nullptr, 10)) : 41;
  for (const bool is_mapped : {true, false})
    for (const uint64_t block_bytes : {4096, 16384, 65536})
      for (const Direction direction : {Direction::kRead, Direction::kWrite}) row(block_bytes, direction, is_mapped, rounds);
}
