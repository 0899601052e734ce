// Where agents of one process meet: each memory transport has an endpoint, found by the agent's uuid and epoch. What others
// may do with it they do under its lock, and only while it is open, so that after closing nobody touches the agent's memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "../transfer/service.h"

namespace millrace::kv {

inline constexpr size_t kInboxMax = 1024;

// uuid, then epoch.
using MemoryKey = std::array<uint8_t, 24>;

struct MemoryMessage {
  MemoryKey sender;
  // The sender cuts us off, or is gone; else a notification.
  bool is_cut;
  std::vector<uint8_t> bytes;
};

class MemoryEndpoint {
 public:
  explicit MemoryEndpoint(const MemoryKey& key);
  ~MemoryEndpoint();
  MemoryEndpoint(const MemoryEndpoint&) = delete;

  // Null when there is none, or not any more.
  static std::shared_ptr<MemoryEndpoint> find(const MemoryKey& key);
  static void open(const std::shared_ptr<MemoryEndpoint>& endpoint);
  // Nobody touches the pools after this; everybody is told.
  void close();

  // kFull when the inbox is. Notifications only to who knows the sender: kNotAllowed. Takes the lock.
  Status post(MemoryMessage message);
  // Wakes whoever waits for `descriptor`.
  void kick();
  // Makes the descriptor unreadable again; before the inbox is looked at.
  void calm();

  struct PoolUse {
    Pool* pool = nullptr;
    uint32_t uses = 0;
  };

  const MemoryKey key;
  const int descriptor;
  std::mutex lock;
  // All below: with the lock.
  bool is_open = true;
  std::map<uint32_t, PoolUse> pools;
  // Blocks of ours that others' operations work on, by a number that each takes.
  std::map<uint64_t, BlockHold> serving;
  uint64_t served = 0;
  std::set<MemoryKey> known;
  std::deque<MemoryMessage> inbox;

 private:
  // The descriptor was written to, or is being.
  std::atomic<bool> is_kicked_{false};
};

}  // namespace millrace::kv
