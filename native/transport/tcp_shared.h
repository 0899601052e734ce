// What the halves of the tcp transport share: settings, who we are, our pools, and the completions of this call of
// `progress`. Private to native/transport; progress thread only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "pool.h"
#include "tcp_connection.h"
#include "transport.h"

namespace millrace::kv {

struct TcpOptions {
  // Numeric, or a name that is looked up once. Port 0: the system chooses.
  std::string listen_host = "127.0.0.1";
  uint16_t port = 0;
  // What peers are told to connect to, numeric; empty: listen_host, or this host's addresses where that is a wildcard.
  std::vector<std::string> hosts;
  // Connections to each peer: for operations of at least kTcpLargeBytes, and for others. From 1 to kTcpStreamsMax.
  uint32_t streams_large = 4;
  uint32_t streams_small = 1;
  // Bytes of requests that have not ended, on one connection. From 64 KiB to 1 GiB.
  uint64_t window_bytes = 8u << 20;
  // Of the sockets; 0: as the system adjusts them.
  uint32_t buffer_bytes = 0;
};

inline constexpr uint64_t kTcpLargeBytes = 256 * 1024;
// Bytes of a slice of a large operation.
inline constexpr uint64_t kTcpPartBytes = 2u << 20;
// A connection, with its handshake, must stand after so long; and silence ends it after so long. Both, and a slice of the
// heartbeat, are inside kPeerLossMs.
inline constexpr uint64_t kTcpConnectNs = 1'000'000'000;
inline constexpr uint64_t kTcpSilenceNs = 1'200'000'000;
inline constexpr size_t kTcpOperationsMax = 65'536;
// Notifications, and frames of any kind, that wait for one peer.
inline constexpr size_t kTcpQueuedBytesMax = 4u << 20;

struct TcpShared {
  TransportHost* host = nullptr;
  TcpOptions options;
  TcpUuid uuid{};
  uint64_t epoch = 0;
  TcpUuid nonce{};
  TcpLoop loop;
  std::map<uint32_t, Pool*> pools;
  std::vector<Completion> completions;
  // Peers whose loss the host has not been told yet.
  std::vector<std::pair<uint32_t, std::string>> lost;
  std::vector<Run> runs;
  // Since when this side has looked at its sockets without a pause: silence from before is its own fault.
  uint64_t awake_ns = 0;
};

}  // namespace millrace::kv
