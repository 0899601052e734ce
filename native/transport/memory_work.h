// One operation of the memory transport: where its copy stands, and the faults that it meets. Used by the progress thread of
// who submitted it.
#pragma once

#include <memory>
#include <random>
#include <vector>

#include "memory_endpoint.h"
#include "memory_transport.h"

namespace millrace::kv {

enum class MemoryStage { kCopy, kVerify, kNotify };

struct MemoryWork {
  Operation operation;
  uint32_t peer = 0;
  std::shared_ptr<MemoryEndpoint> remote;
  uint64_t served = 0;
  std::vector<Run> runs;
  uint64_t bytes = 0, copied = 0;
  // The next byte: of which run, piece and where in it.
  size_t run = 0;
  uint32_t piece = 0;
  uint64_t offset = 0;
  MemoryStage stage = MemoryStage::kCopy;
  uint32_t verified = 0;
  bool is_cancelled = false;
  // Faults.
  uint32_t delay_steps = 0, linger_steps = 0;
  bool is_dropped = false, is_corrupt = false;
  uint64_t fail_after = UINT64_MAX, cut_after = UINT64_MAX;

  // What will go wrong, by chance.
  void draw_faults(const MemoryFaults& faults, MemoryFaultCounts* counts, std::mt19937_64& random);

  // All below: with the lock of the peer, and the peer open.
  Pool* remote_pool() const { return remote->pools.find(operation.remote_pool)->second.pool; }
  // Copies some bytes; true when all are copied.
  bool copy_slice(uint32_t slice_bytes);
  // Changes one byte that was copied.
  void corrupt(std::mt19937_64& random, MemoryFaultCounts* counts);
  // Whether the next block that is to be checked arrived as it was sent.
  bool verify_block();
};

inline void count(MemoryFaultCounts* counts, std::atomic<uint64_t> MemoryFaultCounts::* which) {
  if (counts != nullptr) (counts->*which).fetch_add(1, std::memory_order_relaxed);
}

}  // namespace millrace::kv
