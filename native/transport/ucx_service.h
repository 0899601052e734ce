// The responder's half of the ucx transport, on one link: a peer's requests for our blocks. Blocks are counted in from the
// acceptance of a request until nobody copies for it any more: of a direct one, that is the peer's word, the end of its
// process, or of the endpoint by which its device reaches us. Progress thread only.
#pragma once

#include <deque>
#include <map>

#include "remote_layouts.h"
#include "tcp_runs.h"
#include "ucx_link.h"

namespace millrace::kv {

class UcxService {
 public:
  UcxService(UcxShared& shared, UcxLink& link) : shared_(shared), link_(link) {}

  // Anything but kOk is a fault of the peer.
  Status frame(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  // A message of this request's data came damaged.
  void corrupt(uint64_t op);
  // Sends data of reads as far as there is room. True when there was something.
  bool work();
  // The peer is lost: requests whose bytes we copy end here.
  void end();
  // And nothing of it can reach our memory any more.
  void release_all();

  bool is_quiet() const { return requests_.empty(); }
  bool touches(const Pool& pool) const;
  void forget_pool(uint32_t pool) { layouts_.forget_pool(pool); }

 private:
  struct Serving {
    Direction direction = Direction::kRead;
    bool is_direct = false;
    TcpRequest request;
    Pool* pool = nullptr;
    std::shared_ptr<const Transform> transform;
    BlockHold hold;
    std::vector<Run> runs;
    TcpCursor cursor;
    uint64_t left = 0;
    uint32_t frames = 0;
  };

  Status take_request(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  Status accept(Serving& serving, std::string* text);
  Status take_data(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  Status take_end(const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  void finish(uint64_t op, Status status, const std::string& text);

  UcxShared& shared_;
  UcxLink& link_;
  uint64_t last_op_ = 0;
  RemoteLayouts layouts_;
  // By number, so that reads are answered in the order in which they were asked.
  std::map<uint64_t, Serving> requests_;
  std::deque<uint64_t> reads_;
};

}  // namespace millrace::kv
