// What two ucx transports say to each other (K3): active messages, each with a header of 40 bytes, in little-endian words.
//
//     0      4     5      6     8     16   24     28           32          36
//     magic  kind  flags  zero  key   op   frame  payload crc  header crc  zero
//
// `key` is what the receiver told this sender in its hello or welcome: who has not been told it is not listened to. `op`
// numbers the requests of one side, always growing.
//
//     initiator  hello         layout read               write        data…         read|write direct       [puts, gets, flush] end
//     responder        welcome             data… done          grant        done                     grant                          [done]
//
// Two-sided where the lanes between the two cannot reach memory on their own: bytes go as messages, in the order of the
// runs that both sides lower. Direct where they can: the responder counts its blocks in with the grant and out with the end.
// Payloads of requests, layouts and ends are those of the tcp transport. Pure functions; nothing is trusted but what
// UCX itself decodes: a worker's address and the keys of memory are bytes that only UCX reads, so a checksum guards
// them against damage, and metadata must come from a peer that is trusted.
#pragma once

#include "tcp_wire.h"

namespace millrace::kv {

inline constexpr uint32_t kUcxMagic = 0x31'55'4b'4d;  // "MKU1"
inline constexpr size_t kUcxHeaderBytes = 40;
inline constexpr uint32_t kUcxMessageId = 77;
inline constexpr uint32_t kUcxAddressBytesMax = 16 * 1024;
inline constexpr uint32_t kUcxRkeyBytesMax = 4096;
// Bytes of blocks in one message.
inline constexpr uint32_t kUcxDataBytes = 128 * 1024;

enum class UcxKind : uint8_t {
  kHello = 1,
  kWelcome = 2,
  kGoodbye = 3,
  kHeartbeat = 4,
  kLayout = 5,
  kRead = 6,
  kWrite = 7,
  kGrant = 8,
  kData = 9,
  kDone = 10,
  kCancel = 11,
  kEnd = 12,
  kNotify = 13,
  // Data of a write; those of a read are kData.
  kWriteData = 14,
};

// Flag of data: their payload's crc is to be checked; of kEnd: so are the bytes that were moved.
inline constexpr uint8_t kUcxChecked = 1;
// Flag of kRead and kWrite: the initiator moves the bytes itself.
inline constexpr uint8_t kUcxDirect = 2;

struct UcxHeader {
  UcxKind kind = UcxKind::kHeartbeat;
  uint8_t flags = 0;
  uint64_t key = 0;
  uint64_t op = 0;
  // Of data: its place among those of its request.
  uint32_t frame = 0;

  void encode(uint8_t* out, std::span<const uint8_t> payload) const;
  // kInvalid with the field; the payload's crc is checked of every kind but unchecked data.
  static Status decode(std::span<const uint8_t> bytes, std::span<const uint8_t> payload, UcxHeader* out, std::string* error);
  bool is_data() const { return kind == UcxKind::kData || kind == UcxKind::kWriteData; }
};

// Where an agent can be found, and its pools: the transport's part of its metadata.
struct UcxAddress {
  TcpUuid uuid{};
  uint64_t epoch = 0;
  TcpUuid nonce{};
  // Which process on which host: what lets two on one host watch each other. The start time tells a later process with
  // the same number.
  TcpUuid boot{};
  uint64_t pid_namespace = 0;
  uint32_t pid = 0;
  uint64_t start_time = 0;
  // Whether its lanes include memory shared with other processes of its host.
  bool has_shared_memory = false;
  std::vector<uint8_t> worker;
  struct PoolKey {
    uint32_t pool = 0;
    uint64_t hash = 0;
    uint64_t address = 0;
    uint64_t bytes = 0;
    // Packed by UCX; empty where its memory cannot be reached by others.
    std::vector<uint8_t> rkey;
  };
  std::vector<PoolKey> pools;

  void encode(std::vector<uint8_t>* out) const;
  static Status decode(std::span<const uint8_t> bytes, UcxAddress* out, std::string* error);
};

// Who calls: the hello of the tcp transport, the key for messages to the caller, and where it is (without pools).
struct UcxHello {
  TcpHello hello;
  uint64_t key = 0;
  UcxAddress address;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, UcxHello* out, std::string* error);
};

struct UcxWelcome {
  // Of who was called, for messages to it; 0 when refused.
  uint64_t key = 0;
  TcpReply reply;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, UcxWelcome* out, std::string* error);
};

// The end of a direct request.
struct UcxEnd {
  Status status = Status::kOk;
  uint32_t crc = 0;

  std::vector<uint8_t> encode() const;
  static Status decode(std::span<const uint8_t> bytes, UcxEnd* out, std::string* error);
};

}  // namespace millrace::kv
