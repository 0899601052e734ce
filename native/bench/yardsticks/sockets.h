// The yardstick of tcp: what a writev and a readv loop over loopback move.
#pragma once

#include <cstdint>

namespace millrace::bench {

// Seconds for about `bytes` in pieces of `piece` bytes that lie scattered on both sides, over `streams` connections with two
// threads each.
double stream_seconds(uint64_t piece, uint32_t streams, uint64_t bytes);

}  // namespace millrace::bench
