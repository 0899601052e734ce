// What two tcp transports say to each other (K3): frames, each a header of 32 bytes and a payload, in little-endian words.
//
//     0      4     5      6     8            16    20      24           28            32
//     magic  kind  flags  zero  op           part  length  payload crc  header crc    payload…
//
// Who connects speaks first (kHello) and asks; who accepted answers. `op` numbers the requests of a connection, always
// growing, and every frame about a request carries it; `part` says which slice of its operation a request is.
//
//     initiator  hello        layout  read(blocks)                     write(blocks)         data data        cancel  notify
//     responder        reply                       data data done(st.)               grant           done(st.)
//
// Requests carry block numbers, never descriptors: both sides know both layouts (a layout is told once per connection,
// before the first request that needs it) and lower the same Transform, so data are bytes in the order of its runs. Exactly
// one `done` ends each request and is the last frame about it. Pure functions: bytes in, value or error out, nothing trusted.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layout.h"
#include "plan.h"
#include "status.h"
#include "transport.h"

namespace millrace::kv {

inline constexpr uint32_t kTcpMagic = 0x31'54'4b'4d;  // "MKT1"
inline constexpr size_t kTcpHeaderBytes = 32;
// Versions that are spoken here: from kTcpMajorMin to kTcpMajor. A minor version only adds at the end of payloads.
inline constexpr uint16_t kTcpMajor = 1;
inline constexpr uint16_t kTcpMinor = 0;
inline constexpr uint16_t kTcpMajorMin = 1;
// Capability bits: what both have may be used.
inline constexpr uint64_t kTcpCanCheck = 1;
inline constexpr uint64_t kTcpCapabilities = kTcpCanCheck;

// Limits of what is sent, and of what is accepted.
inline constexpr uint32_t kTcpPoolsMax = 64;
inline constexpr uint32_t kTcpHostsMax = 8;
inline constexpr uint32_t kTcpStreamsMax = 16;
inline constexpr uint32_t kTcpTextMax = 512;
inline constexpr uint32_t kTcpLayoutBytesMax = 64 * 1024;
// Blocks of one request, and the runs that they may come to unless it is one block alone.
inline constexpr uint32_t kTcpPartBlocksMax = 16'384;
inline constexpr uint64_t kTcpPartRunsMax = 65'536;
// Requests of one connection that have not ended.
inline constexpr uint32_t kTcpPartsMax = 32;
inline constexpr uint32_t kTcpDataBytesMax = 1u << 20;

enum class TcpKind : uint8_t {
  kHello = 1,
  kReply = 2,
  kLayout = 3,
  kRead = 4,
  kWrite = 5,
  kGrant = 6,
  kData = 7,
  kDone = 8,
  kCancel = 9,
  kNotify = 10,
  kHeartbeat = 11,
};

// Flag of kData: the payload's crc is to be checked. Of all other kinds it is always checked.
inline constexpr uint8_t kTcpChecked = 1;

struct TcpHeader {
  TcpKind kind = TcpKind::kHeartbeat;
  uint8_t flags = 0;
  uint64_t op = 0;
  uint32_t part = 0;
  uint32_t length = 0;
  uint32_t payload_crc = 0;

  void encode(uint8_t* out) const;
  // From kTcpHeaderBytes bytes. kInvalid with the field where the header is damaged or longer than its kind may be.
  static Status decode(const uint8_t* bytes, TcpHeader* out, std::string* error);
};

using TcpUuid = std::array<uint8_t, 16>;

// Where an agent listens: the transport's part of its metadata. The nonce proves that a caller has this metadata, and
// tells a restarted process at the same address from the one that was meant.
struct TcpAddress {
  TcpUuid uuid{};
  uint64_t epoch = 0;
  TcpUuid nonce{};
  uint16_t port = 0;
  std::vector<std::string> hosts;  // numeric
  struct PoolHash {
    uint32_t pool;
    uint64_t hash;
  };
  // Of the layouts of its pools.
  std::vector<PoolHash> pools;

  void encode(std::vector<uint8_t>* out) const;
  static Status decode(std::span<const uint8_t> bytes, TcpAddress* out, std::string* error);
};

struct TcpHello {
  uint16_t major = kTcpMajor;
  uint16_t minor = kTcpMinor;
  uint16_t major_min = kTcpMajorMin;
  TcpUuid uuid{};
  uint64_t epoch = 0;
  // Of whom is meant.
  TcpUuid nonce{};
  uint64_t capabilities = kTcpCapabilities;
  // The layouts of the other side, as the initiator knows them.
  std::vector<TcpAddress::PoolHash> pools;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, TcpHello* out, std::string* error);
};

// Why a hello was refused. Values never change their meaning.
enum class TcpVerdict : uint8_t { kAccept = 0, kVersion = 1, kNonce = 2, kLayout = 3, kEpoch = 4, kFull = 5, kDamaged = 6 };

struct TcpReply {
  TcpVerdict verdict = TcpVerdict::kAccept;
  uint16_t major = kTcpMajor;
  uint16_t minor = kTcpMinor;
  uint16_t major_min = kTcpMajorMin;
  TcpUuid uuid{};
  uint64_t epoch = 0;
  uint64_t capabilities = kTcpCapabilities;
  // Requests that may be open on this connection, and bytes of them, unless it is one alone: the credit of the initiator.
  uint32_t parts = kTcpPartsMax;
  uint64_t window = 0;
  // The field and both its values, when refused.
  std::string text;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, TcpReply* out, std::string* error);
};

// kRead and kWrite: blocks of one operation, or a slice of them.
struct TcpRequest {
  uint32_t own_pool = 0;   // of who asks
  uint32_t peer_pool = 0;  // of who is asked
  Part part;
  Integrity integrity = Integrity::kOff;
  // Of all blocks together, as the initiator's transform has it.
  uint64_t bytes = 0;
  std::vector<uint32_t> peer_blocks;
  std::vector<uint32_t> own_blocks;
  // Of peer_blocks; empty where its pool keeps none.
  std::vector<uint32_t> generations;

  static Status decode(std::span<const uint8_t> bytes, TcpRequest* out, std::string* error);
};

// A request for blocks that lie in the caller's lists; appended to `out`.
void encode_request(uint32_t own_pool, uint64_t bytes, const Operation& operation, size_t first, size_t count,
                    std::vector<uint8_t>* out);

struct TcpLayout {
  uint32_t pool = 0;
  Layout layout;

  static std::vector<uint8_t> encode(uint32_t pool, const Layout& layout);
  static Status decode(std::span<const uint8_t> bytes, TcpLayout* out, std::string* error);
};

struct TcpDone {
  Status status = Status::kOk;
  std::string text;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, TcpDone* out, std::string* error);
};

// Whether the two can talk; what to answer when not. Both versions are named.
bool tcp_versions_fit(const TcpHello& hello, std::string* text);

}  // namespace millrace::kv
