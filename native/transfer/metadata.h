// What an agent says of itself to its peers: one blob that any channel may carry (a discovery store, an HTTP body, a file).
// Written by the progress thread, parsed by whoever adds a peer. The parser takes bytes from a stranger: everything is
// bounded and checked, and a version that does not fit is told apart from damage.
//
//     u32 magic  u16 major  u16 minor  u8[16] uuid  u64 epoch  u16 n, name
//     u16 pools       of each  u32 id  u8 flags  u8 memory kind  u32 n, layout (Layout::encode)
//     u16 transports  of each  u8 n, name  u32 n, what it describes
//     [sections of later minor versions]  u32 CRC-32C of all before
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layout.h"
#include "status.h"
#include "transport.h"

namespace millrace::kv {

inline constexpr uint16_t kProtocolMajor = 1;
inline constexpr uint16_t kProtocolMinor = 0;
inline constexpr uint32_t kMetadataBytesMax = 4u << 20;
inline constexpr uint32_t kAgentNameBytesMax = 128;
inline constexpr uint32_t kPoolsMax = 64;
inline constexpr uint32_t kTransportsMax = 16;

using Uuid = std::array<uint8_t, 16>;

struct PoolDescription {
  // Never used again within an epoch.
  uint32_t id = 0;
  // The pool has a block table: requests for its blocks carry generations.
  bool has_generations = false;
  MemoryKind kind = MemoryKind::kHost;
  Layout layout;
};

struct TransportDescription {
  std::string name;
  std::vector<uint8_t> described;
};

struct Metadata {
  Uuid uuid{};
  // Grows with every life of the agent: nanoseconds since 1970 at its start.
  uint64_t epoch = 0;
  std::string name;
  std::vector<PoolDescription> pools;
  std::vector<TransportDescription> transports;

  std::vector<uint8_t> encode() const;
  // kMismatch for another major version, with both in `error`; kInvalid, with the field, for anything else that is not a
  // blob of ours.
  static Status decode(std::span<const uint8_t> bytes, Metadata* out, std::string* error);
};

}  // namespace millrace::kv
