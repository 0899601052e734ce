// This process's side of the tests between two: a transport with one pool, what has completed, and operations with the lists
// that they point to.
#pragma once

#include <poll.h>

#include <cstring>
#include <map>

#include "check.h"
#include "host_peer.h"

namespace millrace::kv::test {

inline constexpr uint32_t kPeer = 3;
inline constexpr uint64_t kWaitNs = 30'000'000'000;

// This process: its transport, one pool, and what has completed.
struct Side {
  explicit Side(const PeerSetup& setup) : layout(setup.layout) {
    std::string error;
    PeerSetup own = setup;
    own.table = TableKind::kNone;
    check(setup.make(&host, &transport, &error) == Status::kOk, error);
    std::vector<uint32_t> none;
    pool = make_pool(own, 1, &none);
  }

  void add(const PeerProcess& peer) {
    std::string reason;
    check(transport->add_peer(kPeer, peer.described, &reason) == Status::kOk, reason);
  }

  std::vector<uint8_t> described() {
    std::vector<uint8_t> own;
    transport->describe(&own);
    return own;
  }

  void progress() {
    std::vector<Completion> completions;
    transport->progress(&completions);
    for (const Completion& completion : completions) {
      check(!done.contains(completion.id), "an operation completes once");
      done[completion.id] = completion;
    }
  }

  // Progresses until it holds; a transport that has nothing to do is waited for at its descriptor.
  template <class Condition>
  void until(Condition holds, const std::string& what) {
    const uint64_t end = host.now_ns() + kWaitNs;
    while (!holds()) {
      std::vector<Completion> completions;
      if (!transport->progress(&completions)) {
        pollfd wait{transport->wait_descriptor(), POLLIN, 0};
        poll(&wait, 1, 1000);
      }
      for (const Completion& completion : completions) {
        check(!done.contains(completion.id), "an operation completes once");
        done[completion.id] = completion;
      }
      check(host.now_ns() < end, "in time: " + what);
    }
  }

  Status wait(uint64_t id) {
    until([&] { return done.contains(id); }, "completion");
    return done[id].status;
  }

  RecordingHost host;
  std::unique_ptr<Transport> transport;
  Layout layout;
  std::unique_ptr<Pool> pool;
  std::map<uint64_t, Completion> done;
};

// An operation and the lists that it points to.
struct Request {
  Request(Side& side, const PeerProcess& peer, const Layout& remote, Direction direction, uint64_t id) {
    std::string error;
    const bool is_read = direction == Direction::kRead;
    const Layout& source = is_read ? remote : side.layout;
    const Layout& target = is_read ? side.layout : remote;
    check(Transform::make(source, target, {}, &operation.transform, &error) == Status::kOk, error);
    operation.id = id;
    operation.direction = direction;
    operation.local = side.pool.get();
    operation.remote_pool = PeerProcess::kPool;
    peer_generations = peer.generations;
  }
  // Block i of ours with block list[i] of the peer.
  void set_blocks(const std::vector<uint32_t>& list) {
    for (uint32_t i = 0; i < list.size(); i++) local.push_back(i);
    remote = list;
    for (const uint32_t block : list) {
      if (!peer_generations.empty()) generations.push_back(peer_generations[block]);
    }
    operation.local_blocks = local;
    operation.remote_blocks = remote;
    operation.remote_generations = generations;
  }
  std::vector<uint8_t> apply(const std::vector<uint8_t>& source, std::vector<uint8_t> target) const {
    std::vector<Run> runs;
    std::string error;
    const bool is_read = operation.direction == Direction::kRead;
    check(operation.transform->lower((is_read ? remote : local).data(), (is_read ? local : remote).data(),
                                     static_cast<uint32_t>(local.size()), &runs, &error) == Status::kOk, error);
    for (const Run& run : runs) {
      for (uint32_t piece = 0; piece < run.count; piece++) {
        std::memcpy(&target[run.target + piece * run.target_stride], &source[run.source + piece * run.source_stride], run.length);
      }
    }
    return target;
  }
  Operation operation;
  std::vector<uint32_t> peer_generations, local, remote, generations;
};

inline std::vector<uint8_t> bytes_in(const Pool& pool) { return {pool.address(), pool.address() + pool.bytes()}; }

inline std::vector<uint8_t> pattern(uint64_t bytes) {
  std::vector<uint8_t> made(bytes);
  for (uint64_t i = 0; i < bytes; i++) made[i] = pattern_byte(i);
  return made;
}

inline Layout paged(InnerOrder inner, uint32_t heads, uint32_t rank, uint32_t ranks, uint32_t blocks) {
  PagedKvShape shape;
  shape.layers = 3;
  shape.block_tokens = 16;
  shape.heads = heads;
  shape.heads_total = 8;
  shape.head_dim = 64;
  shape.element_bytes = 2;
  shape.tp_rank = rank;
  shape.tp_size = ranks;
  shape.inner_order = inner;
  Layout layout;
  std::string error;
  const uint64_t bytes = uint64_t{3} * 2 * 16 * heads * 64 * 2 * blocks;
  check(Layout::paged_kv(shape, blocks, bytes, "model", &layout, &error) == Status::kOk, error);
  return layout;
}

inline Layout opaque(uint64_t block_bytes, uint32_t blocks) {
  Layout layout;
  std::string error;
  check(Layout::opaque(block_bytes, block_bytes, blocks, block_bytes * blocks, &layout, &error) == Status::kOk, error);
  return layout;
}

}  // namespace millrace::kv::test
