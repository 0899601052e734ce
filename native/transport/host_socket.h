// The control line between two processes on one host (K3), shared by the shm, cma and cuda transports: a Unix socket that keeps
// message borders, carries descriptors, says which process and user is at the other end, and closes when that process
// dies. Bytes of blocks never go through it. Owned and used by the agent's progress thread; nothing here blocks.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "status.h"

namespace millrace::kv {

using HostUuid = std::array<uint8_t, 16>;

// Of the messages below; peers of another version are refused.
inline constexpr uint32_t kHostVersion = 1;
// (block, generation) pairs in one kGrant, and all that one peer may hold.
inline constexpr uint32_t kGrantPairsMax = 4096;
inline constexpr uint32_t kGrantBlocksMax = 1u << 22;
inline constexpr uint32_t kHostPayloadMax = 64 * 1024;
// Bytes that wait for a peer who does not read; more is kFull.
inline constexpr uint64_t kHostQueueBytesMax = uint64_t{4} << 20;

enum class HostMessage : uint32_t {
  kHello = 1,       // HostHello; the first of who connects
  kWelcome = 2,     // HostUuid of who was connected to; pools follow
  kPool = 3,        // HostPool and what the transport adds; descriptors: the memory if it has one, then the table's
  kPoolGone = 4,    // id: pool
  kGrant = 5,       // id: operation; HostGrant and its pairs; may I work there?
  kGranted = 6,     // id: operation; int32 Status
  kRelease = 7,     // id: operation; I work there no more
  kNotify = 8,      // bytes
  kHeartbeat = 9,
};

// Two processes of one host and one build of this format: words as they lie in memory.
struct HostHeader {
  uint32_t message;
  uint32_t bytes;
  uint64_t id;
};
struct HostHello {
  uint32_t version;
  uint32_t reserved;
  HostUuid from;
  // From the described part of the metadata: who does not have it has no business here.
  HostUuid token;
};
struct HostPool {
  uint32_t id;
  uint32_t has_memory;
  uint64_t bytes;
  uint64_t address;
  // 0 where the table cannot be mapped: then reads, too, ask for a grant.
  uint64_t table_bytes;
  uint32_t has_table;
  uint32_t reserved;
};
struct HostGrant {
  uint32_t pool;
  uint32_t pairs;
  uint32_t is_last;
  uint32_t is_write;
};

// The process at the other end, by the kernel's word.
struct HostProcess {
  int32_t pid = 0;
  uint32_t uid = 0;
};

// What a peer is told of a pool.
struct HostAnnouncement {
  HostPool facts{};
  std::vector<uint8_t> extra;
  // Of the memory, where `facts.has_memory`; stays the announcer's.
  int descriptor = -1;
};

class HostSocket {
 public:
  enum class Received { kMessage, kNothing, kClosed };
  struct Incoming {
    HostHeader header;
    // Until the next `receive`.
    std::span<const uint8_t> payload;
  };

  // Listens under an abstract name, which no file system and no clean-up knows. -1 and errno on failure.
  static int listen_at(const std::string& name);
  // -1 and errno on failure.
  static int connect_to(const std::string& name);

  // Takes the descriptor over and has `epoll` tell when there is something to receive, or to send again.
  HostSocket(int descriptor, int epoll);
  ~HostSocket();
  HostSocket(const HostSocket&) = delete;

  int descriptor() const { return descriptor_; }
  bool process(HostProcess* out) const;
  // Queues a message and sends what the socket takes. The descriptors stay the caller's.
  void send(HostMessage message, uint64_t id, std::span<const uint8_t> head, std::span<const uint8_t> tail = {},
            std::span<const int> descriptors = {});
  // False once the line is broken.
  bool flush();
  uint64_t queued_bytes() const { return queued_bytes_; }
  Received receive(Incoming* out);
  // The next descriptor that came with the last message, now the caller's; -1 when there is none.
  int take_descriptor();

 private:
  struct Outgoing {
    std::vector<uint8_t> bytes;
    std::vector<int> descriptors;
  };

  void drop_received();
  bool send_front();
  void watch();

  int descriptor_;
  int epoll_;
  bool is_broken_ = false;
  bool watches_output_ = false;
  uint64_t queued_bytes_ = 0;
  std::deque<Outgoing> queue_;
  std::vector<uint8_t> buffer_;
  std::array<int, 2> received_ = {-1, -1};
};

template <class Words>
std::span<const uint8_t> bytes_of(const Words& words) {
  return {reinterpret_cast<const uint8_t*>(&words), sizeof words};
}

}  // namespace millrace::kv
