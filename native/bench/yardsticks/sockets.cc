// Blocking sockets, two threads for each connection; see sockets.h.
#include "sockets.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "memory.h"

namespace millrace::bench {
namespace {

constexpr uint64_t kMemoryBytes = uint64_t{256} << 20;
constexpr uint64_t kCallBytes = uint64_t{1} << 20;
constexpr size_t kIovecs = 64;

struct Connection {
  int from, to;
};

Connection connect_loopback() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  require(bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(listener, 1) == 0, "listen");
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  Connection made{socket(AF_INET, SOCK_STREAM, 0), -1};
  require(connect(made.from, reinterpret_cast<sockaddr*>(&address), size) == 0, "connect");
  made.to = accept(listener, nullptr, nullptr);
  close(listener);
  const int one = 1;
  setsockopt(made.from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  return made;
}

// Pieces of a memory in their order, from any byte of the stream on.
struct Pieces {
  uint8_t* memory;
  const std::vector<uint32_t>* order;
  uint64_t piece;
  size_t most;

  size_t fill(uint64_t at, uint64_t bytes, iovec* out) const {
    size_t count = 0;
    for (; count < most && bytes > 0; count++) {
      const uint64_t offset = at % piece;
      const uint64_t length = std::min(piece - offset, bytes);
      out[count] = {memory + (*order)[at / piece % order->size()] * piece + offset, length};
      at += length;
      bytes -= length;
    }
    return count;
  }
};

template <class Call>
void run(const Pieces& pieces, uint64_t begin, uint64_t bytes, const Call& call) {
  iovec list[kIovecs];
  for (uint64_t done = 0; done < bytes;) {
    const size_t count = pieces.fill(begin + done, bytes - done, list);
    const ssize_t moved = call(list, static_cast<int>(count));
    require(moved > 0, "a loopback stream");
    done += static_cast<uint64_t>(moved);
  }
}

}  // namespace

double stream_seconds(uint64_t piece, uint32_t streams, uint64_t bytes) {
  static uint8_t* const memories[] = {large_pages(kMemoryBytes), large_pages(kMemoryBytes)};
  const auto blocks = static_cast<uint32_t>(kMemoryBytes / piece);
  const std::vector<uint32_t> orders[] = {scattered(blocks, 1), scattered(blocks, 2)};
  const size_t most = std::clamp<size_t>(kCallBytes / piece, 1, kIovecs);
  const Pieces from{memories[0], &orders[0], piece, most};
  const Pieces to{memories[1], &orders[1], piece, most};
  const uint64_t each = bytes / streams;
  std::vector<Connection> connections(streams);
  for (Connection& connection : connections) connection = connect_loopback();
  std::vector<std::thread> threads;
  const double begin = now_seconds();
  for (uint32_t i = 0; i < streams; i++) {
    const Connection at = connections[i];
    const uint64_t first = kMemoryBytes / streams * i;
    threads.emplace_back([=] { run(from, first, each, [at](iovec* list, int count) { return writev(at.from, list, count); }); });
    threads.emplace_back([=] { run(to, first, each, [at](iovec* list, int count) { return readv(at.to, list, count); }); });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = now_seconds() - begin;
  for (const Connection& at : connections) {
    close(at.from);
    close(at.to);
  }
  return seconds;
}

}  // namespace millrace::bench
