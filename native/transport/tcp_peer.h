// The initiator's half of the tcp transport: connections to one peer, and the operations that are submitted to it. An
// operation is cut into parts, slices of its block lists, and each part is one request on the connection that has the least
// to do. Parts are asked for as the peer's credit allows, first by priority and then by age. Progress thread only.
//
//     Part:  asked ─ data in ─ done            a read
//            asked ─ granted ─ data out ─ done     a write
//
// Cancelling a read orphans its parts: their bytes are dropped as they come, so it completes at once. Cancelling a write
// ends after the frame that is being sent, and completes when the peer has said that it writes no more.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>

#include "tcp_shared.h"

namespace millrace::kv {

class TcpPeer final : public TcpConnectionOwner {
 public:
  TcpPeer(TcpShared& shared, uint32_t number, TcpAddress address);
  // Without completing anything.
  ~TcpPeer() override;

  const TcpAddress& address() const { return address_; }
  // The same life of the peer, with other pools.
  void update(TcpAddress address) { address_ = std::move(address); }
  // Begins to connect. kUnsupported where no host of the address can be tried.
  Status connect(std::string* error);
  bool is_lost() const { return is_lost_; }

  Status submit(const Operation& operation);
  // Ends an operation for `cause`; its completion follows.
  void stop(uint64_t id, Status cause);
  Status notify(std::span<const uint8_t> bytes);
  // Completes everything with `status` and closes.
  void end(Status status);
  // Heartbeats, and what has taken too long.
  void tick(uint64_t now);
  bool touches(const Pool& pool) const;

  Status frame(TcpConnection& connection, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) override;
  TcpFlow* data(TcpConnection& connection, const TcpHeader& header, std::string* why) override;
  void arrived(TcpConnection& connection, TcpFlow& flow, bool is_corrupt) override;
  TcpFlow* outgoing(TcpConnection& connection) override;
  void ending(TcpConnection&, TcpFlow&) override {}
  void sent(TcpConnection& connection, TcpFlow& flow) override;
  void closed(TcpConnection& connection, const std::string& why) override;

 private:
  struct Flight {
    Operation operation;
    uint64_t sequence = 0;
    uint64_t bytes = 0;
    uint32_t blocks_per_part = 0;
    // Blocks that have been asked for, parts so far, and parts that have not ended.
    uint32_t asked = 0;
    uint32_t parts = 0;
    uint32_t open = 0;
    uint64_t moved = 0;
    Status status = Status::kOk;
    bool is_large = false;
  };
  struct Part {
    // Null once its operation has completed without it.
    Flight* flight = nullptr;
    Direction direction = Direction::kRead;
    uint32_t first = 0;
    uint32_t count = 0;
    uint64_t bytes = 0;
    bool is_granted = false;
    bool is_cancelled = false;
    bool is_cancel_sent = false;
    TcpFlow flow;
  };
  struct Stream {
    std::unique_ptr<TcpConnection> connection;
    bool is_ready = false;
    uint64_t begun_ns = 0;
    uint64_t last_op = 0;
    // Of the read whose data come.
    uint64_t receiving = 0;
    uint32_t credit_parts = 0;
    uint64_t credit_bytes = 0;
    uint64_t bytes = 0;
    std::map<uint64_t, Part> parts;
    std::deque<uint64_t> to_send;
    std::set<uint32_t> told_layouts;
  };

  // Small operations have connections of their own, the first ones, so that none waits behind a large one.
  Status open_stream(std::string* error);
  Status welcome(Stream& stream, std::span<const uint8_t> payload, std::string* why);
  Stream& stream_of(const TcpConnection& connection);
  void feed();
  Stream* room_for(const Flight& flight, uint64_t bytes);
  void ask(Stream& stream, Flight& flight, uint32_t count);
  Status start(Part& part);
  void end_part(Stream& stream, uint64_t op, Status status);
  void cancel_part(Stream& stream, Part& part);
  void stop(Flight& flight, Status cause);
  void complete(Flight& flight);
  void lose(const std::string& why);

  TcpShared& shared_;
  const uint32_t number_;
  TcpAddress address_;
  size_t host_ = 0;
  bool is_lost_ = false;
  uint64_t heard_ns_ = 0;
  uint64_t beat_ns_ = 0;
  uint64_t sequence_ = 0;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::unordered_map<uint64_t, std::unique_ptr<Flight>> flights_;
  // Those with blocks that have not been asked for, by (priority, age): small ones, large ones.
  std::map<std::pair<uint8_t, uint64_t>, Flight*> waiting_[2];
  // Notifications until the first connection stands.
  std::vector<std::vector<uint8_t>> notes_;
  // Bytes of notifications that wait, those of operations too.
  size_t note_bytes_ = 0;
};

}  // namespace millrace::kv
