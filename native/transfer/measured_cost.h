// What the transfers of one way to a peer, in one direction, have cost so far: by it, and by what transports say of
// themselves until enough was seen, the agent chooses among the ways. Progress thread only; time comes from the caller.
//
//  - The rate is bytes over the time in which they were served: from the end of the transfer before, where that was later
//    than the beginning. The sums of both are what counts, so that transfers that take turns and end together are right.
//  - The latency is the shortest time of a small transfer that had the way to itself, in a window: a thread that was not
//    given a processor makes times longer and never shorter.
//  - Both fade: a way that was given up is tried again after some seconds.
#pragma once

#include <cstdint>

#include "transport.h"

namespace millrace::kv {

class MeasuredCost {
 public:
  // Fewer bytes, and fewer small transfers, say nothing yet.
  static constexpr double kBytesLeast = 8 << 20;
  static constexpr uint32_t kSmallLeast = 8;
  // Of a small transfer.
  static constexpr uint64_t kSmallBytes = 256 * 1024;
  // What was seen counts half after so long; the shortest time is taken over one to two windows.
  static constexpr uint64_t kHalfNs = 2'000'000'000;
  static constexpr uint64_t kWindowNs = 5'000'000'000;

  // A transfer goes this way; true when no other does.
  bool begin() { return in_flight_++ == 0; }
  // It has ended, with `bytes` moved, 0 where it failed. `was_alone` as `begin` said.
  void end(uint64_t begun_ns, uint64_t done_ns, uint64_t bytes, bool was_alone);
  // Of the next transfer; `said` by the transport.
  Cost expected(const Cost& said, uint64_t now_ns) const;

 private:
  struct Window {
    uint64_t begun_ns = 0;
    uint64_t least_ns = UINT64_MAX;
    uint32_t count = 0;
  };
  double faded(uint64_t now_ns) const;
  void note_small(uint64_t took_ns, uint64_t now_ns);

  uint32_t in_flight_ = 0;
  uint64_t done_ns_ = 0;
  // As of noted_ns_.
  double bytes_ = 0;
  double seconds_ = 0;
  uint64_t noted_ns_ = 0;
  Window now_, before_;
};

}  // namespace millrace::kv
