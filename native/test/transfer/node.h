// What tests of agents share: pools with tables whose blocks say whose they are, a few agents that know each other, and
// waiting for an event with a limit of time.
#pragma once

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "agent.h"
#include "check.h"

namespace millrace::kv::test {

inline constexpr auto kWaitMax = std::chrono::seconds(60);

// Of opaque blocks, with a table. What a block should hold is written by `fill`.
inline std::unique_ptr<Pool> make_pool(uint32_t blocks, uint32_t block_bytes, bool has_table = true) {
  std::string error;
  std::unique_ptr<Pool> pool;
  check(Pool::create(uint64_t{blocks} * block_bytes, "test", &pool, &error) == Status::kOk, error);
  Layout layout;
  check(Layout::opaque(block_bytes, block_bytes, blocks, pool->bytes(), &layout, &error) == Status::kOk, error);
  pool->set_layout(layout);
  if (has_table) check(pool->create_table(blocks, &error) == Status::kOk, error);
  return pool;
}

using PoolMaker = std::unique_ptr<Pool> (*)(uint32_t blocks, uint32_t block_bytes);
// Where pools in host memory come from.
inline PoolMaker pool_source = [](uint32_t blocks, uint32_t block_bytes) { return make_pool(blocks, block_bytes); };
inline std::unique_ptr<Pool> make_host_pool(uint32_t blocks, uint32_t block_bytes) { return pool_source(blocks, block_bytes); }

inline uint64_t* words_of(const Pool& pool, uint32_t block) {
  return reinterpret_cast<uint64_t*>(pool.address() + block * pool.layout().block_bytes());
}

inline void fill(const Pool& pool, uint32_t block, uint64_t tag) {
  uint64_t* const words = words_of(pool, block);
  for (uint64_t i = 0; i < pool.layout().block_bytes() / 8; i++) words[i] = tag + i;
}

inline bool holds(const Pool& pool, uint32_t block, uint64_t tag) {
  const uint64_t* const words = words_of(pool, block);
  for (uint64_t i = 0; i < pool.layout().block_bytes() / 8; i++)
    if (words[i] != tag + i) return false;
  return true;
}

// An agent with one pool, and what it has heard.
struct Node {
  std::unique_ptr<Agent> agent;
  Pool* pool = nullptr;
  uint32_t pool_id = 0;
  std::vector<Event> heard;

  static Node make(const TransportMaker& transport, uint32_t blocks, uint32_t block_bytes, const Uuid& uuid = {},
                   uint32_t operations_max = 1024, PoolMaker pool_maker = make_host_pool) {
    Node node;
    AgentOptions options;
    options.name = "node";
    options.uuid = uuid;
    options.operations_max = operations_max;
    options.more_transports = {transport};
    options.transports = {transport.probe().name};
    std::string error;
    check(Agent::create(options, &node.agent, &error) == Status::kOk, error);
    std::unique_ptr<Pool> pool = pool_maker(blocks, block_bytes);
    node.pool = pool.get();
    check(node.agent->add_pool(std::move(pool), &node.pool_id, &error) == Status::kOk, error);
    return node;
  }

  uint32_t meet(Node& other) {
    uint32_t peer = 0;
    std::string error;
    check(agent->add_peer(other.agent->metadata(), &peer, &error) == Status::kOk, error);
    return peer;
  }

  // A block that is ready to be read, or reserved to be written.
  uint32_t take(uint64_t tag, bool is_ready, uint32_t* generation) {
    uint32_t block;
    check(pool->table()->reserve(1, 0, &block, generation) == Status::kOk, "a block is free");
    fill(*pool, block, tag);
    if (!is_ready) return block;
    uint32_t existing;
    check(pool->table()->fill({&block, 1}) == Status::kOk, "filling");
    check(pool->table()->commit(block, {tag, 0, kNoBlock}, &existing) == Status::kOk, "ready");
    return block;
  }

  // Polls until an event is as wanted; takes it out of what was heard.
  Event wait(const std::string& what, const std::function<bool(const Event&)>& wanted) {
    const auto until = std::chrono::steady_clock::now() + kWaitMax;
    for (;;) {
      for (size_t i = 0; i < heard.size(); i++) {
        if (!wanted(heard[i])) continue;
        Event found = std::move(heard[i]);
        heard.erase(heard.begin() + static_cast<ptrdiff_t>(i));
        return found;
      }
      if (agent->poll(64, &heard) != 0) continue;
      check(std::chrono::steady_clock::now() < until, "waited too long for " + what);
      std::this_thread::yield();
    }
  }

  Event completion(int64_t id) {
    return wait("the completion of a transfer", [&](const Event& event) {
      return event.kind == EventKind::kCompletion && event.id == static_cast<uint64_t>(id);
    });
  }
};

}  // namespace millrace::kv::test
