// What the parts of the ucx transport share: the worker, who we are, our pools, and the completions of this call of
// `progress`. Private to native/transport; progress thread only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "plan.h"
#include "transport.h"
#include "ucx_context.h"
#include "ucx_wire.h"

namespace millrace::kv {

// Answers, and any sign of life, must come after so long: both, and a slice of the heartbeat, are inside kPeerLossMs.
inline constexpr uint64_t kUcxConnectNs = 1'000'000'000;
inline constexpr uint64_t kUcxSilenceNs = 1'200'000'000;
inline constexpr size_t kUcxOperationsMax = 65'536;
inline constexpr size_t kUcxQueuedBytesMax = 4u << 20;
inline constexpr size_t kUcxLinksMax = 4096;

struct UcxShared {
  struct Registered {
    Pool* pool;
    void* memory;
    std::vector<uint8_t> rkey;
  };

  TransportHost* host = nullptr;
  UcxContext* context = nullptr;
  void* worker = nullptr;
  // Nothing has been begun since UCX was asked to tell of events.
  bool is_armed = false;
  // Who we are; its pools are filled in when it is told.
  UcxAddress self;
  std::map<uint32_t, Registered> pools;
  std::vector<Completion> completions;
  // Peers whose loss the host has not been told yet.
  std::vector<std::pair<uint32_t, std::string>> lost;
  std::vector<Run> runs;
  // Since when this side has looked at its messages without a pause: silence from before is its own fault.
  uint64_t awake_ns = 0;

  const UcxApi& api() const { return context->api(); }
};

// Of the checked runs' bytes, in their order, on one side of them.
uint32_t crc_of_runs(std::span<const Run> runs, const uint8_t* base, bool is_target, uint32_t every);

}  // namespace millrace::kv
