// The tcp transport (K3): any two hosts, two-sided. Each agent listens, and opens connections of its own to each peer for
// what it submits; bytes go between sockets and pools by both sides' progress threads. What is said is in tcp_wire.h, a
// peer seen from who asks in tcp_peer.h, from who is asked in tcp_service.h.
//
// The network is trusted to be private: who connects must show the nonce of our metadata, but nothing is encrypted.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>

#include "tcp_peer.h"
#include "tcp_service.h"
#include "transport.h"

namespace millrace::kv {

// `options.listen_host` is the agent's where it is empty.
TransportMaker tcp_transport(TcpOptions options);

class TcpTransport final : public Transport, public TcpWatched {
 public:
  // Null with the reason.
  static std::unique_ptr<Transport> make(const TcpOptions& options, const TransportSetup& setup, std::string* error);
  static TransportInfo probe();
  ~TcpTransport() override;

  const TransportInfo& info() const override { return info_; }
  Status add_pool(Pool* pool) override;
  Status remove_pool(Pool* pool) override;
  void describe(std::vector<uint8_t>* out) override;
  Status add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) override;
  void remove_peer(uint32_t peer) override;
  Cost cost(uint32_t peer, const Operation& operation, uint64_t bytes) override;
  Status submit(uint32_t peer, const Operation& operation) override;
  void cancel(uint64_t id) override;
  Status notify(uint32_t peer, std::span<const uint8_t> bytes) override;
  bool progress(std::vector<Completion>* completions) override;
  int wait_descriptor() override { return shared_.loop.descriptor(); }

  // The timer of heartbeats.
  void ready(uint32_t events) override;

 private:
  TcpTransport() = default;
  Status open(const TransportSetup& setup, std::string* error);
  void expire(uint64_t now);

  TransportInfo info_;
  TcpShared shared_;
  int timer_ = -1;
  uint64_t tick_ns_ = 0;
  uint64_t seen_ns_ = 0;
  std::unique_ptr<TcpService> service_;
  std::map<uint32_t, std::unique_ptr<TcpPeer>> peers_;
  // Whose operation it is.
  std::unordered_map<uint64_t, std::pair<TcpPeer*, uint64_t>> operations_;
  std::set<std::pair<uint64_t, uint64_t>> deadlines_;
};

}  // namespace millrace::kv
