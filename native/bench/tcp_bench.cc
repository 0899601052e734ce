// The tcp transport against plain C loops over loopback, in one run: `tcp_bench [seconds per side]`. The yardstick of each row
// is a writev and a read loop of two threads with blocking sockets, the same piece size and the same number of connections;
// the transport moves the same bytes between two agents of this process. Sides take turns, the median of five is reported.
// One line of JSON on stdout.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "agent.h"
#include "tcp_transport.h"

using namespace millrace::kv;
using Clock = std::chrono::steady_clock;

namespace {

constexpr uint64_t kPoolBytes = 256u << 20;
constexpr int kRounds = 5;
// Operations in flight, and bytes of each.
constexpr uint32_t kDepth = 4;
constexpr uint64_t kOperationBytes = 16u << 20;

[[noreturn]] void stop(const std::string& why) {
  std::fprintf(stderr, "tcp_bench: %s\n", why.c_str());
  std::exit(1);
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::vector<uint32_t> shuffled(uint32_t blocks, uint32_t seed) {
  std::vector<uint32_t> list(blocks);
  std::iota(list.begin(), list.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(list.begin(), list.end(), random);
  return list;
}

struct Sockets {
  int from, to;
};

Sockets connected() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 1) != 0) stop("cannot listen");
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const int from = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(from, reinterpret_cast<sockaddr*>(&address), size) != 0) stop("cannot connect");
  const int to = accept(listener, nullptr, nullptr);
  close(listener);
  const int one = 1;
  setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return {from, to};
}

// Bytes per second of `streams` pairs of threads; pieces in random order on both sides.
double plain(const std::vector<uint8_t*>& pools, uint64_t piece, uint32_t streams, double seconds) {
  const auto blocks = static_cast<uint32_t>(kPoolBytes / piece);
  const auto from_order = shuffled(blocks, 1), to_order = shuffled(blocks, 2);
  const auto begin = Clock::now();
  std::vector<std::thread> threads;
  std::vector<uint64_t> received(streams);
  for (uint32_t stream = 0; stream < streams; stream++) {
    const Sockets pair = connected();
    const uint32_t first = blocks / streams * stream;
    threads.emplace_back([=, &pools, &from_order] {
      iovec pieces[kTcpIovecs];
      uint32_t at = first;
      const size_t most = std::max<size_t>(1, std::min<size_t>(kTcpIovecs, (1u << 20) / piece));
      while (seconds_since(begin) < seconds) {
        for (size_t i = 0; i < most; i++) pieces[i] = {pools[0] + from_order[at++ % blocks] * piece, piece};
        size_t done = 0;
        while (done < most) {
          const ssize_t sent = writev(pair.from, pieces + done, static_cast<int>(most - done));
          if (sent <= 0) stop("writev failed");
          auto rest = static_cast<size_t>(sent);
          while (done < most && rest >= pieces[done].iov_len) rest -= pieces[done++].iov_len;
          if (done < most) pieces[done] = {static_cast<uint8_t*>(pieces[done].iov_base) + rest, pieces[done].iov_len - rest};
        }
      }
      close(pair.from);
    });
    threads.emplace_back([=, &pools, &to_order, &received] {
      iovec pieces[kTcpIovecs];
      const size_t most = std::max<size_t>(1, std::min<size_t>(kTcpIovecs, (1u << 20) / piece));
      uint64_t total = 0;
      for (;;) {
        uint64_t offset = total % piece;
        uint64_t block = total / piece + first;
        for (size_t i = 0; i < most; i++, offset = 0)
          pieces[i] = {pools[1] + to_order[block++ % blocks] * piece + offset, piece - offset};
        const ssize_t got = readv(pair.to, pieces, static_cast<int>(most));
        if (got <= 0) break;
        total += static_cast<uint64_t>(got);
      }
      received[stream] = total;
      close(pair.to);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(std::accumulate(received.begin(), received.end(), uint64_t{0})) / seconds_since(begin);
}

struct Side {
  // Released when there are events again; outlives the agent.
  std::unique_ptr<std::counting_semaphore<>> events;
  std::unique_ptr<Agent> agent;
  Pool* pool = nullptr;
  uint32_t pool_id = 0;
};

Side make_side(uint64_t piece, uint32_t streams) {
  TcpOptions tcp;
  tcp.streams_large = streams;
  AgentOptions options;
  options.name = "bench";
  options.transports = {"tcp"};
  options.more_transports = {tcp_transport(tcp)};
  Side side;
  side.events = std::make_unique<std::counting_semaphore<>>(0);
  options.wake = [events = side.events.get()] { events->release(); };
  std::string error;
  if (Agent::create(options, &side.agent, &error) != Status::kOk) stop(error);
  std::unique_ptr<Pool> pool;
  if (Pool::create(kPoolBytes, "bench", &pool, &error) != Status::kOk) stop(error);
  Layout layout;
  if (Layout::opaque(piece, piece, static_cast<uint32_t>(kPoolBytes / piece), kPoolBytes, &layout, &error) != Status::kOk) stop(error);
  pool->set_layout(layout);
  std::memset(pool->address(), 7, kPoolBytes);
  side.pool = pool.get();
  if (side.agent->add_pool(std::move(pool), &side.pool_id, &error) != Status::kOk) stop(error);
  return side;
}

struct Pair {
  Pair(uint64_t piece, uint32_t streams) : a(make_side(piece, streams)), b(make_side(piece, streams)) {
    std::string error;
    if (a.agent->add_peer(b.agent->metadata(), &peer, &error) != Status::kOk) stop(error);
    const auto blocks = static_cast<uint32_t>(kPoolBytes / piece);
    local = shuffled(blocks, 1);
    remote = shuffled(blocks, 2);
    per_operation = static_cast<uint32_t>(kOperationBytes / piece);
  }
  Side a, b;
  uint32_t peer = 0, per_operation = 0;
  std::vector<uint32_t> local, remote;
};

// Bytes per second with kDepth operations in flight.
double ours(Pair& pair, Direction direction, Integrity integrity, double seconds) {
  std::string error;
  uint32_t at = 0, in_flight = 0;
  uint64_t bytes = 0;
  std::vector<Event> events;
  const auto begin = Clock::now();
  bool is_over = false;
  while (!is_over || in_flight > 0) {
    is_over = seconds_since(begin) >= seconds;
    while (!is_over && in_flight < kDepth) {
      TransferRequest request;
      request.peer = pair.peer;
      request.direction = direction;
      request.integrity = integrity;
      request.local_pool = pair.a.pool_id;
      request.remote_pool = pair.b.pool_id;
      const auto slice = [&](const std::vector<uint32_t>& all) {
        return std::vector<uint32_t>(all.begin() + at, all.begin() + at + pair.per_operation);
      };
      request.local_blocks = slice(pair.local);
      request.remote_blocks = slice(pair.remote);
      at = (at + pair.per_operation) % static_cast<uint32_t>(pair.local.size());
      if (pair.a.agent->submit(std::move(request), &error) <= 0) stop(error);
      in_flight++;
    }
    events.clear();
    if (pair.a.agent->poll(64, &events) == 0) pair.a.events->acquire();
    for (const Event& event : events) {
      if (event.kind != EventKind::kCompletion) continue;
      if (event.status != Status::kOk) stop(std::string("a transfer ended as ") + status_name(event.status));
      bytes += event.bytes;
      in_flight--;
    }
  }
  return static_cast<double>(bytes) / seconds_since(begin);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 1.0;
  if (!(seconds > 0 && seconds <= 60)) stop("seconds per side must be from 0 to 60");
  const struct {
    const char* name;
    uint64_t piece;
    uint32_t streams;
  } rows[] = {{"stream1_16KiB", 16 << 10, 1}, {"stream4_1MiB", 1 << 20, 4}};
  std::printf("{");
  for (const auto& row : rows) {
    Pair pair(row.piece, row.streams);
    const std::vector<uint8_t*> pools = {pair.a.pool->address(), pair.b.pool->address()};
    std::vector<double> plains, writes, reads, checked;
    for (int round = 0; round < kRounds; round++) {
      plains.push_back(plain(pools, row.piece, row.streams, seconds));
      writes.push_back(ours(pair, Direction::kWrite, Integrity::kOff, seconds));
      reads.push_back(ours(pair, Direction::kRead, Integrity::kOff, seconds));
      checked.push_back(ours(pair, Direction::kWrite, Integrity::kFull, seconds));
    }
    const double yardstick = median(plains), write = median(writes), read = median(reads), full = median(checked);
    std::printf("%s\"%s\":{\"plainGBs\":%.3f,\"writeGBs\":%.3f,\"readGBs\":%.3f,\"fullGBs\":%.3f,"
                "\"writeRatio\":%.3f,\"readRatio\":%.3f,\"fullRatio\":%.3f}",
                &row == rows ? "" : ",", row.name, yardstick / 1e9, write / 1e9, read / 1e9, full / 1e9, write / yardstick,
                read / yardstick, full / write);
    std::fflush(stdout);
  }
  std::printf("}\n");
}
