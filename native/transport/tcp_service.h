// The responder's half of the tcp transport: connections that peers have opened to us, and their requests for our blocks.
// Whoever connects proves that it has our metadata, and its view of our layouts is compared with what they are, before
// anything else is listened to. Blocks that a request touches are counted in from its acceptance until its last byte has been
// copied, so that none is handed out anew under it. Progress thread only.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>

#include "remote_layouts.h"
#include "service.h"
#include "tcp_shared.h"

namespace millrace::kv {

// Connections, those among them that have not said who they are, and what waits for a peer to be added here.
inline constexpr size_t kTcpServedMax = 4096;
inline constexpr size_t kTcpStrangersMax = 64;
inline constexpr size_t kTcpHeldNotesMax = 256;
inline constexpr size_t kTcpHeldBytesMax = 1u << 20;

class TcpService final : public TcpConnectionOwner, public TcpWatched {
 public:
  explicit TcpService(TcpShared& shared) : shared_(shared) {}
  ~TcpService() override;
  // kSystem with the reason.
  Status listen(std::string* error);
  uint16_t port() const { return port_; }

  // The number of a peer whose notifications may be told; 0: not known any more, and its connections end.
  void set_peer(const TcpUuid& uuid, uint64_t epoch, uint32_t peer);
  bool touches(const Pool& pool) const;
  // What refers to this pool's layout.
  void forget_pool(uint32_t pool);
  void tick(uint64_t now);

  void ready(uint32_t events) override;
  Status frame(TcpConnection& connection, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) override;
  TcpFlow* data(TcpConnection& connection, const TcpHeader& header, std::string* why) override;
  void arrived(TcpConnection& connection, TcpFlow& flow, bool is_corrupt) override;
  TcpFlow* outgoing(TcpConnection& connection) override;
  void ending(TcpConnection& connection, TcpFlow& flow) override;
  void sent(TcpConnection& connection, TcpFlow& flow) override;
  void closed(TcpConnection& connection, const std::string& why) override;

 private:
  // A request that has been accepted and has not ended.
  struct Serving {
    Direction direction = Direction::kRead;
    TcpRequest request;
    Pool* pool = nullptr;
    std::shared_ptr<const Transform> transform;
    BlockHold hold;
    Status status = Status::kOk;
    std::string text;
    bool is_told = false;
    TcpFlow flow;
  };
  // An agent that has connected: one life of it.
  struct Session {
    TcpUuid uuid{};
    uint64_t epoch = 0;
    uint32_t connections = 0;
    uint64_t heard_ns = 0;
    RemoteLayouts layouts;
    std::vector<std::vector<uint8_t>> held;
    size_t held_bytes = 0;
  };
  struct Served {
    std::unique_ptr<TcpConnection> connection;
    std::shared_ptr<Session> session;
    uint64_t begun_ns = 0;
    uint64_t last_op = 0;
    // Of the write whose data come.
    uint64_t receiving = 0;
    // By number, so that reads are answered in the order in which they were asked.
    std::map<uint64_t, Serving> requests;
    std::deque<uint64_t> reads;
  };

  void drop_stranger();
  Status greet(Served& served, std::span<const uint8_t> payload, std::string* why);
  TcpVerdict judge(const TcpHello& hello, std::string* text) const;
  Status take_request(Served& served, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why);
  Status accept(Session& session, Serving& serving, std::string* text);
  void cancel(Served& served, const TcpHeader& header);
  void notified(Session& session, std::span<const uint8_t> bytes);
  Status start(Serving& serving);
  void tell_end(TcpConnection& connection, Serving& serving);
  void end(Served& served, Serving& serving);

  TcpShared& shared_;
  int listener_ = -1;
  uint16_t port_ = 0;
  size_t strangers_ = 0;
  std::map<const TcpConnection*, std::unique_ptr<Served>> served_;
  std::map<TcpUuid, std::shared_ptr<Session>> sessions_;
  std::map<TcpUuid, std::pair<uint64_t, uint32_t>> peers_;
};

}  // namespace millrace::kv
