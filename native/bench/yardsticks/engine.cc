// See engine.h.
#include "engine.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <thread>

namespace millrace::bench {
namespace {

// Longer than what is between two transfers, so that the agent's thread does not sleep there, as the copier of the yardstick
// does not; and before the yardstick's turn it gets the time to fall asleep, as there may be two processors only.
constexpr uint32_t kSpinUs = 1000;
constexpr uint32_t kFallAsleepUs = 5000;
constexpr size_t kMetadataBytes = 65'536;
constexpr uint32_t kReader = 0;
constexpr uint32_t kCopier = 1;

int32_t passed(int32_t status) {
  if (status < 0) stop(std::string(mkv_status_name(status)) + ": " + mkv_last_error());
  return status;
}

mkv_agent* open_agent(const std::string& transport, uint32_t spin_us) {
  mkv_agent_params params{};
  params.size = sizeof(params);
  params.abi = MKV_ABI;
  params.name = "bench";
  params.transports = transport.c_str();
  params.spin_us = spin_us;
  mkv_agent* agent = nullptr;
  passed(mkv_agent_open(&params, &agent));
  return agent;
}

uint32_t open_pool(mkv_agent* agent, uint64_t block_bytes, uint32_t blocks) {
  mkv_layout layout{};
  layout.size = sizeof(layout);
  layout.abi = MKV_ABI;
  layout.kind = MKV_OPAQUE;
  layout.blocks = blocks;
  layout.block_bytes = layout.stride = block_bytes;
  mkv_pool_params params{};
  params.size = sizeof(params);
  params.abi = MKV_ABI;
  params.layout = &layout;
  params.bytes = block_bytes * blocks;
  uint32_t pool = 0;
  passed(mkv_pool_open(agent, &params, &pool));
  return pool;
}

struct Greeting {
  uint32_t pool;
  uint32_t bytes;
  uint8_t metadata[kMetadataBytes];
};

// The far agent, until the other end of the pipe is closed.
[[noreturn]] void serve(const std::string& transport, uint64_t block_bytes, uint32_t blocks, int out) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  mkv_agent* const agent = open_agent(transport, 0);
  static Greeting greeting;
  greeting.pool = open_pool(agent, block_bytes, blocks);
  size_t bytes = sizeof(greeting.metadata);
  passed(mkv_metadata(agent, greeting.metadata, &bytes));
  greeting.bytes = static_cast<uint32_t>(bytes);
  require(write(out, &greeting, sizeof(greeting)) == sizeof(greeting), "pipe");
  for (;;) pause();
}

}  // namespace

Engine::Engine(const std::string& transport, uint64_t block_bytes, uint32_t blocks) : transport_(transport) {
  int ends[2];
  require(pipe(ends) == 0, "pipe");
  child_ = fork();
  require(child_ >= 0, "fork");
  if (child_ == 0) serve(transport, block_bytes, blocks, ends[1]);
  close(ends[1]);
  static Greeting greeting;
  auto* const bytes = reinterpret_cast<uint8_t*>(&greeting);
  for (size_t got = 0; got < sizeof(greeting);) {
    const ssize_t more = read(ends[0], bytes + got, sizeof(greeting) - got);
    require(more > 0, "the far agent's greeting");
    got += static_cast<size_t>(more);
  }
  close(ends[0]);
  use_processor(kCopier);
  agent_ = open_agent(transport, kSpinUs);
  use_processor(kReader);
  local_pool_ = open_pool(agent_, block_bytes, blocks);
  source_pool_ = open_pool(agent_, block_bytes, blocks);
  remote_pool_ = greeting.pool;
  target_ = static_cast<uint8_t*>(mkv_pool_address(agent_, local_pool_));
  source_ = static_cast<uint8_t*>(mkv_pool_address(agent_, source_pool_));
  passed(mkv_peer_add(agent_, greeting.metadata, greeting.bytes, &peer_));
  // All of the peer's pool, so that every page is where it has to be before anything is timed.
  std::vector<uint32_t> all(blocks);
  for (uint32_t i = 0; i < blocks; i++) all[i] = i;
  transfer(all, all);
}

Engine::~Engine() {
  mkv_agent_close(agent_);
  kill(child_, SIGKILL);
  waitpid(child_, nullptr, 0);
}

mkv_event Engine::transfer(const std::vector<uint32_t>& remote, const std::vector<uint32_t>& local) {
  mkv_transfer_params params{};
  params.size = sizeof(params);
  params.abi = MKV_ABI;
  params.peer = peer_;
  params.direction = MKV_READ;
  params.local_pool = local_pool_;
  params.remote_pool = remote_pool_;
  params.local_blocks = local.data();
  params.remote_blocks = remote.data();
  params.block_count = static_cast<uint32_t>(local.size());
  params.reader = MKV_READER_SOON;
  params.transport = transport_.c_str();
  uint64_t id = 0;
  passed(mkv_submit(agent_, &params, &id));
  mkv_event event{};
  for (;;) {
    if (passed(mkv_poll(agent_, &event, 1, 0)) == 0) continue;
    if (event.kind == MKV_COMPLETION && event.id == id) break;
  }
  passed(event.status);
  return event;
}

double Engine::read_by_engine(const Lists& lists) {
  volatile uint64_t sum = 0;
  double seconds = 0;
  std::vector<uint32_t> remote(lists.count), local(lists.count);
  for (uint32_t batch = 0; batch < lists.batches; batch++) {
    for (uint32_t i = 0; i < lists.count; i++) {
      remote[i] = lists.sources[lists.place(batch, i)];
      local[i] = lists.targets[lists.place(batch, i)];
    }
    const double begin = now_seconds();
    transfer(remote, local);
    sum = read_list(lists, batch, target_);
    seconds += now_seconds() - begin;
  }
  static_cast<void>(sum);
  return seconds;
}

double Engine::read_by_memcpy(const Lists& lists) {
  usleep(kFallAsleepUs);
  std::atomic<uint32_t> asked{0}, done{0};
  std::thread copier([&] {
    use_processor(kCopier);
    for (uint32_t batch = 0; batch < lists.batches; batch++) {
      while (asked.load(std::memory_order_acquire) <= batch) continue;
      copy_list(lists, batch, source_, target_);
      done.store(batch + 1, std::memory_order_release);
    }
  });
  volatile uint64_t sum = 0;
  double seconds = 0;
  for (uint32_t batch = 0; batch < lists.batches; batch++) {
    const double begin = now_seconds();
    asked.store(batch + 1, std::memory_order_release);
    while (done.load(std::memory_order_acquire) <= batch) continue;
    sum = read_list(lists, batch, target_);
    seconds += now_seconds() - begin;
  }
  copier.join();
  static_cast<void>(sum);
  return seconds;
}

std::vector<double> Engine::completions(uint32_t transfers) {
  std::vector<double> waits;
  for (uint32_t i = 0; i < transfers; i++) {
    const mkv_event event = transfer({i % 64}, {i % 64});
    waits.push_back(now_seconds() * 1e9 - static_cast<double>(event.done_ns));
  }
  std::sort(waits.begin(), waits.end());
  return waits;
}

}  // namespace millrace::bench
