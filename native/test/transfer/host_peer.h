// A process of its own with a host transport and one pool, for tests that need two: it is forked, says what it has over a
// socket pair, and obeys single commands there while it progresses.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "pool.h"
#include "transport.h"

namespace millrace::kv::test {

using MakeTransport = Status (*)(TransportHost*, std::unique_ptr<Transport>*, std::string*);

// Records what a transport tells it.
class RecordingHost final : public TransportHost {
 public:
  Pool* pool(uint32_t) override { return nullptr; }
  void notified(uint32_t peer, std::span<const uint8_t> bytes) override {
    notifications.push_back({peer, {bytes.begin(), bytes.end()}});
  }
  void peer_lost(uint32_t peer, const std::string& why) override { lost.push_back(std::to_string(peer) + ": " + why); }
  uint64_t now_ns() override;
  std::vector<Notification> notifications;
  std::vector<std::string> lost;
};

enum class TableKind : uint8_t { kNone, kShared, kPrivate };

// What the other process makes: a pool of this layout, its byte i being `pattern_byte(i)`, registered memory where the
// pool is wrapped; and with a table, all blocks reserved, the even ones ready and the odd ones filling.
struct PeerSetup {
  MakeTransport make;
  Layout layout;
  bool is_wrapped = false;
  TableKind table = TableKind::kNone;
  // Where it is neither of our own making nor registered: makes it.
  std::unique_ptr<Pool> (*memory)(uint64_t bytes) = nullptr;
};

uint8_t pattern_byte(uint64_t at);
std::unique_ptr<Pool> make_pool(const PeerSetup& setup, uint32_t id, std::vector<uint32_t>* generations);

class PeerProcess {
 public:
  static constexpr uint32_t kPool = 5;

  explicit PeerProcess(const PeerSetup& setup);
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;

  // Releases this block and reserves it anew; returns when that is done.
  void renew(uint32_t block);
  // All bytes of its pool.
  std::vector<uint8_t> dump();
  // Its transport adds the one described as a peer and notifies it.
  void greet(const std::vector<uint8_t>& described, const std::string& words);
  // What it was told last; waits for it.
  std::vector<uint8_t> told();
  // Whether all blocks can be released and become free, with nobody's operation left in them.
  bool frees_all();
  void kill_now();

  std::vector<uint8_t> described;
  std::vector<uint32_t> generations;

 private:
  void serve(const PeerSetup& setup, int channel);
  uint64_t bytes_;
  pid_t pid_ = 0;
  int channel_ = -1;
};

}  // namespace millrace::kv::test
