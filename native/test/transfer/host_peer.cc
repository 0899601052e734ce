// The second process of the tests of shm and cma. See host_peer.h.
#include "host_peer.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <ctime>

namespace millrace::kv::test {
namespace {

void send_all(int channel, const void* bytes, uint64_t size) {
  for (uint64_t sent = 0; sent < size;) {
    const ssize_t part = send(channel, static_cast<const uint8_t*>(bytes) + sent, size - sent, MSG_NOSIGNAL);
    check(part > 0, "the channel takes bytes");
    sent += static_cast<uint64_t>(part);
  }
}

void receive_all(int channel, void* bytes, uint64_t size) {
  for (uint64_t got = 0; got < size;) {
    const ssize_t part = recv(channel, static_cast<uint8_t*>(bytes) + got, size - got, 0);
    check(part > 0, "the channel gives bytes");
    got += static_cast<uint64_t>(part);
  }
}

void send_list(int channel, const std::vector<uint8_t>& bytes) {
  const uint64_t size = bytes.size();
  send_all(channel, &size, sizeof size);
  send_all(channel, bytes.data(), size);
}

std::vector<uint8_t> receive_list(int channel) {
  uint64_t size = 0;
  receive_all(channel, &size, sizeof size);
  std::vector<uint8_t> bytes(size);
  receive_all(channel, bytes.data(), size);
  return bytes;
}

}  // namespace

uint64_t RecordingHost::now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

uint8_t pattern_byte(uint64_t at) { return static_cast<uint8_t>((at * 0x9e37'79b9'7f4a'7c15u) >> 40); }

std::unique_ptr<Pool> make_pool(const PeerSetup& setup, uint32_t id, std::vector<uint32_t>* generations) {
  std::unique_ptr<Pool> pool;
  std::string error;
  const uint64_t bytes = setup.layout.pool_bytes();
  const uint32_t blocks = setup.layout.blocks();
  if (setup.memory != nullptr) {
    pool = setup.memory(bytes);
  } else if (setup.is_wrapped) {
    // Lives as long as the process.
    static std::vector<std::unique_ptr<uint8_t[]>> registered;
    registered.push_back(std::make_unique<uint8_t[]>(bytes));
    check(Pool::wrap(registered.back().get(), bytes, MemoryKind::kHost, 0, &pool, &error) == Status::kOk, error);
  } else {
    check(Pool::create(bytes, "test", &pool, &error) == Status::kOk, error);
  }
  pool->id = id;
  pool->set_layout(setup.layout);
  if (setup.table == TableKind::kNone) return pool;
  if (setup.table == TableKind::kShared) {
    check(pool->create_table(blocks, &error) == Status::kOk, error);
  } else {
    const uint64_t size = (BlockTable::bytes_for(blocks) + 63) / 64 * 64;
    static std::vector<void*> memories;
    memories.push_back(std::aligned_alloc(64, size));
    std::unique_ptr<BlockTable> table;
    check(BlockTable::create(memories.back(), size, blocks, &table, &error) == Status::kOk, error);
    pool->set_table(std::move(table));
  }
  std::vector<uint32_t> taken(blocks);
  generations->resize(blocks);
  std::vector<uint32_t> given(blocks);
  check(pool->table()->reserve(blocks, 1, taken.data(), given.data()) == Status::kOk, "all blocks are reserved");
  for (uint32_t i = 0; i < blocks; i++) (*generations)[taken[i]] = given[i];
  check(pool->table()->fill(taken) == Status::kOk, "all blocks are being filled");
  for (uint32_t block = 0; block < blocks; block += 2) {
    uint32_t existing = 0;
    check(pool->table()->commit(block, {block + 1, 0, kNoBlock}, &existing) == Status::kOk, "even blocks are ready");
  }
  return pool;
}

PeerProcess::PeerProcess(const PeerSetup& setup) : bytes_(setup.layout.pool_bytes()) {
  int pair[2];
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "a channel");
  const pid_t parent = getpid();
  pid_ = fork();
  check(pid_ >= 0, "fork");
  if (pid_ == 0) {
    close(pair[0]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent) serve(setup, pair[1]);
    _exit(0);
  }
  close(pair[1]);
  channel_ = pair[0];
  described = receive_list(channel_);
  const std::vector<uint8_t> words = receive_list(channel_);
  generations.resize(words.size() / sizeof(uint32_t));
  if (!words.empty()) std::memcpy(generations.data(), words.data(), words.size());
}

PeerProcess::~PeerProcess() {
  if (pid_ > 0) kill_now();
  close(channel_);
}

void PeerProcess::kill_now() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

void PeerProcess::serve(const PeerSetup& setup, int channel) {
  RecordingHost host;
  std::unique_ptr<Transport> transport;
  std::string error;
  check(setup.make(&host, &transport, &error) == Status::kOk, error);
  const std::unique_ptr<Pool> pool = make_pool(setup, kPool, &generations);
  for (uint64_t i = 0; i < pool->bytes(); i++) pool->address()[i] = pattern_byte(i);
  check(transport->add_pool(pool.get()) == Status::kOk, "the transport takes the pool");
  transport->describe(&described);
  send_list(channel, described);
  const auto* words = reinterpret_cast<const uint8_t*>(generations.data());
  send_list(channel, {words, words + generations.size() * sizeof(uint32_t)});
  bool owes_told = false;
  while (true) {
    std::vector<Completion> completions;
    while (transport->progress(&completions)) continue;
    if (owes_told && !host.notifications.empty()) {
      send_list(channel, host.notifications.back().bytes);
      host.notifications.clear();
      owes_told = false;
    }
    pollfd waits[2] = {{channel, POLLIN, 0}, {transport->wait_descriptor(), POLLIN, 0}};
    poll(waits, 2, 1000);
    char command = 0;
    if (recv(channel, &command, 1, MSG_DONTWAIT) != 1) {
      if ((waits[0].revents & (POLLHUP | POLLERR)) != 0) return;
      continue;
    }
    uint32_t block = 0;
    uint32_t count = 0;
    switch (command) {
      case 'r':
        receive_all(channel, &block, sizeof block);
        check(pool->table()->release(block, generations[block]) == Status::kOk, "the block is released");
        check(pool->table()->reserve(1, 1, &block, &generations[block]) == Status::kOk, "and reserved anew");
        send_all(channel, &block, sizeof block);
        break;
      case 'd': send_all(channel, pool->address(), pool->bytes()); break;
      case 't': owes_told = true; break;
      case 'g': {
        check(transport->add_peer(9, receive_list(channel), &error) == Status::kOk, error);
        check(transport->notify(9, receive_list(channel)) == Status::kOk, "a notification");
        break;
      }
      case 'f':
        // What was said before this was asked counts, though both may have been read in one wake-up.
        while (transport->progress(&completions)) continue;
        for (uint32_t i = 0; i < generations.size(); i++) pool->table()->release(i, generations[i]);
        pool->table()->settle();
        count = pool->table()->stats().free;
        send_all(channel, &count, sizeof count);
        break;
      default: check(false, "a known command");
    }
  }
}

void PeerProcess::renew(uint32_t block) {
  send_all(channel_, "r", 1);
  send_all(channel_, &block, sizeof block);
  receive_all(channel_, &block, sizeof block);
}

std::vector<uint8_t> PeerProcess::dump() {
  send_all(channel_, "d", 1);
  std::vector<uint8_t> bytes(bytes_);
  receive_all(channel_, bytes.data(), bytes_);
  return bytes;
}

void PeerProcess::greet(const std::vector<uint8_t>& whom, const std::string& words) {
  send_all(channel_, "g", 1);
  send_list(channel_, whom);
  send_list(channel_, {words.begin(), words.end()});
}

std::vector<uint8_t> PeerProcess::told() {
  send_all(channel_, "t", 1);
  return receive_list(channel_);
}

bool PeerProcess::frees_all() {
  send_all(channel_, "f", 1);
  uint32_t count = 0;
  receive_all(channel_, &count, sizeof count);
  return count == generations.size();
}

}  // namespace millrace::kv::test
