// Agents of one process (K3): they find each other in a registry and copy from pool to pool, in slices, by the progress
// thread of who submitted. Besides being the fastest way inside a process it is what the state machines of the engine are
// tested on: it can delay, drop, break off, reorder and corrupt operations and cut off peers, by a seed. The peer's blocks
// are counted in its own table while they are worked on (BlockHold::serve), under the lock of the peer's endpoint.
#pragma once

#include <atomic>
#include <memory>

#include "../transfer/transport.h"

namespace millrace::kv {

// How many of 10,000 operations meet with each; an operation may meet with several.
struct MemoryFaults {
  uint64_t seed = 0;
  // Waits for some steps before it begins.
  uint32_t delay = 0;
  // Never moves, until it is cancelled or its peer is lost.
  uint32_t drop = 0;
  // Fails with kSystem after part of its bytes.
  uint32_t partial = 0;
  // Its runs are copied in a random order, and later operations may end before it.
  uint32_t reorder = 0;
  // One byte of the target is changed after the copy.
  uint32_t corrupt = 0;
  // Goes on writing for a while after it was cancelled, as hardware does that cannot be stopped.
  uint32_t linger = 0;
  // After part of its bytes the two agents are cut off from each other.
  uint32_t cut = 0;
  // Of 10,000 steps in which a notification could go, so many pass without it; what comes after it waits too.
  uint32_t late = 0;
};

// What really happened, over all transports that were given this object.
struct MemoryFaultCounts {
  std::atomic<uint64_t> delayed{0}, dropped{0}, partial{0}, reordered{0}, corrupted{0}, cut{0}, lingered{0}, late{0};
  // Corrupted operations that were checked in full, and how many of those the check found.
  std::atomic<uint64_t> corrupted_checked{0}, corrupted_found{0};
};

struct MemoryOptions {
  MemoryFaults faults;
  // May be null.
  std::shared_ptr<MemoryFaultCounts> counts;
  // Null, or how many notifications go yet: others wait, in order, until it is raised.
  std::shared_ptr<std::atomic<uint32_t>> notes_allowed;
  uint32_t operations_max = 256;
  uint32_t slice_bytes = 256 * 1024;
};

TransportMaker memory_transport(const MemoryOptions& options);

}  // namespace millrace::kv
