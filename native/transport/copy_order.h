// The order in which blocks are copied where nobody but the copier cares: by the place of their sources, so that many small
// blocks do not cost a miss of the address translation each. Of the transports that copy themselves (shm, cma); what goes
// over a wire keeps the caller's order. Pure, but for memory of the calling thread that is kept for the next call.
#pragma once

#include <cstdint>
#include <span>

namespace millrace::kv {

// Both of the same length; valid until the thread's next call, and no longer than the lists that were given.
struct BlockPairs {
  const uint32_t* sources;
  const uint32_t* targets;
};

// The lists themselves where sorting them would gain nothing. Both must have the same length.
BlockPairs in_copy_order(std::span<const uint32_t> sources, std::span<const uint32_t> targets);

}  // namespace millrace::kv
