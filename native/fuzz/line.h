// What the targets that speak to a transport over a socket share: the agent that it thinks it belongs to, one pool, and
// operations whose completions are counted.
#pragma once

#include <time.h>

#include <cstdlib>
#include <memory>
#include <set>
#include <vector>

#include "layout.h"
#include "plan.h"
#include "pool.h"
#include "transport.h"
#include "words.h"

namespace millrace::kv::fuzz {

inline constexpr uint32_t kBlocks = 8;
inline constexpr uint32_t kBlockBytes = 4096;
inline constexpr uint32_t kPeer = 1;
inline constexpr uint32_t kPool = 5;

inline void expect(bool holds) {
  if (!holds) std::abort();
}

class Host final : public TransportHost {
 public:
  Pool* pool(uint32_t) override { return nullptr; }
  void notified(uint32_t, std::span<const uint8_t>) override {}
  void peer_lost(uint32_t, const std::string& why) override { expect(!why.empty()); }
  uint64_t now_ns() override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  }
};

// A pool with a table, even blocks ready and odd ones reserved.
inline std::unique_ptr<Pool> make_pool() {
  std::string error;
  std::unique_ptr<Pool> pool;
  Layout layout;
  expect(Pool::create(kBlocks * kBlockBytes, "fuzz", &pool, &error) == Status::kOk);
  expect(Layout::opaque(kBlockBytes, kBlockBytes, kBlocks, pool->bytes(), &layout, &error) == Status::kOk);
  pool->set_layout(layout);
  pool->id = kPool;
  expect(pool->create_table(kBlocks, &error) == Status::kOk);
  uint32_t blocks[kBlocks], generations[kBlocks];
  expect(pool->table()->reserve(kBlocks, 0, blocks, generations) == Status::kOk);
  for (uint32_t i = 0; i < kBlocks; i += 2) {
    uint32_t existing;
    expect(pool->table()->fill({&blocks[i], 1}) == Status::kOk);
    expect(pool->table()->commit(blocks[i], {i, 0, kNoBlock}, &existing) == Status::kOk);
  }
  return pool;
}

// Operations on the peer's pool, and that each ends once.
class Operations {
 public:
  Operations(Transport& transport, Pool& pool) : transport_(transport), pool_(pool) {
    std::string error;
    expect(Transform::make(pool.layout(), pool.layout(), {}, &transform_, &error) == Status::kOk);
  }

  void submit(Direction direction, uint32_t first, bool has_generations) {
    if (given_ == kMost) return;
    Lists& lists = lists_[given_];
    lists = {{first % kBlocks, (first + 1) % kBlocks}, {0, 1}, {1, 1}};
    Operation operation;
    operation.id = ++given_;
    operation.direction = direction;
    operation.integrity = first % 2 == 0 ? Integrity::kOff : Integrity::kFull;
    operation.local = &pool_;
    operation.remote_pool = kPool;
    operation.transform = transform_;
    operation.remote_blocks = lists.remote;
    operation.local_blocks = lists.local;
    if (has_generations) operation.remote_generations = lists.generations;
    if (transport_.submit(kPeer, operation) == Status::kOk) expect(open_.insert(operation.id).second);
  }

  void progress() {
    std::vector<Completion> completions;
    for (int turn = 0; turn < 64; turn++)
      if (!transport_.progress(&completions)) break;
    for (const Completion& completion : completions) expect(open_.erase(completion.id) == 1);
  }

  bool are_over() const { return open_.empty(); }

 private:
  static constexpr uint32_t kMost = 8;
  struct Lists {
    std::vector<uint32_t> remote, local, generations;
  };
  Transport& transport_;
  Pool& pool_;
  std::shared_ptr<const Transform> transform_;
  Lists lists_[kMost];
  uint32_t given_ = 0;
  std::set<uint64_t> open_;
};

}  // namespace millrace::kv::fuzz
