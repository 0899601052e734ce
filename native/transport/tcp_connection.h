// One socket of the tcp transport: frames in, frames out, and the bytes of blocks between the socket and pool memory with no
// buffer between them, but where pieces are so small that a copy is cheaper than a vector of them. It knows frames and flows
// and nothing of operations; its owner says where data go and what is sent next. Non-blocking; edge-triggered in one
// epoll; progress thread only.
#pragma once

#include <sys/uio.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tcp_runs.h"
#include "tcp_wire.h"

namespace millrace::kv {

inline constexpr size_t kTcpIovecs = 64;
// Pieces shorter than this, on average, go through a buffer. Measured: see native/bench/tcp_bench.cc.
inline constexpr uint64_t kTcpBounceBelow = 2048;
inline constexpr size_t kTcpBounceBytes = 128 * 1024;
// Data of a frame that is checked: few enough that they are in the cache still when they are copied.
inline constexpr uint64_t kTcpCheckedBytes = 128 * 1024;

// The bytes of one request on their way, in one direction. Owned by who owns the connection, until the request has ended.
struct TcpFlow {
  uint64_t op = 0;
  uint32_t part = 0;
  Integrity integrity = Integrity::kOff;
  // Bytes that have not been received, or not been put into a frame.
  uint64_t left = 0;
  // Frames so far.
  uint32_t frames = 0;
  // Bytes that come are dropped; the pool's memory is not touched.
  bool is_discarded = false;
  TcpCursor cursor;
};

class TcpConnection;

class TcpConnectionOwner {
 public:
  virtual ~TcpConnectionOwner() = default;
  // A whole frame other than data. Anything but kOk ends the connection, for what `why` says.
  virtual Status frame(TcpConnection& connection, const TcpHeader& header, std::span<const uint8_t> payload, std::string* why) = 0;
  // Where the bytes of this data frame go; null ends the connection.
  virtual TcpFlow* data(TcpConnection& connection, const TcpHeader& header, std::string* why) = 0;
  // All bytes of a data frame have come.
  virtual void arrived(TcpConnection& connection, TcpFlow& flow, bool is_corrupt) = 0;
  // Whose bytes are sent next, started and with bytes left; null: none.
  virtual TcpFlow* outgoing(TcpConnection& connection) = 0;
  // The last bytes of the flow are about to be sent; what is queued now goes along.
  virtual void ending(TcpConnection& connection, TcpFlow& flow) = 0;
  // The system has taken a frame of this flow; no byte of it is read any more.
  virtual void sent(TcpConnection& connection, TcpFlow& flow) = 0;
  // Called from the loop, once; the owner destroys the connection.
  virtual void closed(TcpConnection& connection, const std::string& why) = 0;
};

// Something in the epoll.
class TcpWatched {
 public:
  virtual ~TcpWatched() = default;
  virtual void ready(uint32_t events) = 0;
};

// The epoll, and the connections that have something to do.
class TcpLoop {
 public:
  ~TcpLoop();
  Status open(std::string* error);
  int descriptor() const { return epoll_; }
  Status watch(int descriptor, uint32_t events, TcpWatched* watched, std::string* error);
  // Takes what the epoll says, and lets connections take turns until `until_ns`. True when there was anything to do.
  template <class Clock>
  bool run(uint64_t until_ns, Clock now);

  void queue(TcpConnection* connection);
  void bury(TcpConnection* connection) { dead_.push_back(connection); }
  void forget(TcpConnection* connection);
  // Where dropped bytes go.
  std::vector<uint8_t>& waste() { return waste_; }

 private:
  bool poll();
  void end_dead();

  int epoll_ = -1;
  std::deque<TcpConnection*> turns_;
  std::vector<TcpConnection*> dead_;
  std::vector<uint8_t> waste_;
};

class TcpConnection final : public TcpWatched {
 public:
  // Takes the descriptor over: connected, or connecting.
  static std::unique_ptr<TcpConnection> open(TcpLoop& loop, TcpConnectionOwner& owner, int descriptor, uint32_t buffer_bytes,
                                             std::string* error);
  ~TcpConnection() override;
  TcpConnection(const TcpConnection&) = delete;

  void send(TcpHeader header, std::span<const uint8_t> payload = {});
  // Bytes of frames, other than data, that wait to be sent.
  size_t queued() const { return control_.size() + batch_control_.size(); }
  // The flow of the frame that is being sent, or null.
  const TcpFlow* sending() const { return batch_flow_; }
  // There may be something to send now.
  void kick() { loop_.queue(this); }
  // Ends it, from the loop; nothing is read or written any more.
  void fail(const std::string& why);
  // Ends it once what is queued has been sent.
  void fail_after_sending(const std::string& why);
  // Unsent bytes are dropped by the system when the descriptor closes.
  void reset_on_close();
  bool is_dead() const { return is_dead_; }
  // For the loop: tells the owner.
  void end() { owner_.closed(*this, std::string(why_)); }

  void ready(uint32_t events) override;
  // One turn; true when there was anything to do, and it waits for another turn then.
  bool turn();

  // For the loop.
  bool is_in_turns = false;

 private:
  TcpConnection(TcpLoop& loop, TcpConnectionOwner& owner, int descriptor)
      : loop_(loop), owner_(owner), descriptor_(descriptor) {}
  bool read_some();
  void parse_input();
  void begin_frame();
  void end_frame(std::span<const uint8_t> payload);
  size_t destination(std::span<iovec> out, uint64_t* bytes);
  void take_data(std::span<const iovec> pieces, uint64_t bytes);
  void end_data();
  bool write_some();
  void fill_batch();
  void add_data(TcpFlow& flow);

  TcpLoop& loop_;
  TcpConnectionOwner& owner_;
  int descriptor_;
  bool is_readable_ = false;
  bool is_hung_up_ = false;
  bool is_writable_ = false;
  bool is_dead_ = false;
  bool ends_after_sending_ = false;
  std::string why_;

  // In: what was read beyond the frame before; then the frame that is coming.
  uint8_t input_[4096];
  size_t input_begin_ = 0;
  size_t input_end_ = 0;
  bool has_header_ = false;
  TcpHeader header_;
  std::vector<uint8_t> payload_;
  size_t payload_have_ = 0;
  TcpFlow* flow_ = nullptr;
  uint64_t data_left_ = 0;
  uint32_t data_crc_ = 0;

  // Out: frames that wait, and what one call gives to the system.
  std::vector<uint8_t> control_;
  std::vector<uint8_t> batch_control_;
  std::vector<uint8_t> batch_tail_;
  uint8_t batch_header_[kTcpHeaderBytes];
  iovec batch_[kTcpIovecs];
  size_t batch_begin_ = 0;
  size_t batch_end_ = 0;
  TcpFlow* batch_flow_ = nullptr;
  // Gathered or scattered small pieces; none until one is needed.
  std::vector<uint8_t> bounce_in_;
  std::vector<uint8_t> bounce_out_;
};

template <class Clock>
bool TcpLoop::run(uint64_t until_ns, Clock now) {
  bool has_worked = poll();
  while (!turns_.empty()) {
    TcpConnection* const connection = turns_.front();
    turns_.pop_front();
    connection->is_in_turns = false;
    if (connection->turn()) {
      has_worked = true;
      queue(connection);
    }
    if (now() >= until_ns) break;
  }
  if (!dead_.empty()) has_worked = true;
  end_dead();
  return has_worked || !turns_.empty();
}

}  // namespace millrace::kv
