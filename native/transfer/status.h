// Outcomes of the transfer engine: one closed list for the core, the addon, the C ABI and TypeScript (transfer/errors.ts).
// Values never change their meaning: they cross processes and versions. Negative is failure.
#pragma once

#include <cstdint>

namespace millrace::kv {

enum class Status : int32_t {
  kOk = 0,
  // An argument lies outside what its call allows.
  kInvalid = -1,
  // No such pool, peer, plan, transfer or lease here.
  kNotFound = -2,
  // Two sides do not fit: protocol version, layout, block bytes, TP degree.
  kMismatch = -3,
  // The peer may not do this: foreign block, no lease, read-only pool.
  kNotAllowed = -4,
  // A block or pool is in use by a transfer that has not ended.
  kBusy = -5,
  // A ring, table or credit window is full: try again after a completion.
  kFull = -6,
  // This transport cannot do it; `probe` says why.
  kUnsupported = -7,
  // The peer died, was cut off or missed its heartbeats.
  kPeerLost = -8,
  kCancelled = -9,
  kDeadline = -10,
  // The checksum of what arrived differs.
  kCorrupt = -11,
  // A generation moved on: the block, pool or peer is not the one that was meant.
  kStale = -12,
  // The operating system or a library refused; the agent's last error has its words.
  kSystem = -13,
  kClosed = -14,
};

// The name without the k, for messages.
const char* status_name(Status status);

}  // namespace millrace::kv
