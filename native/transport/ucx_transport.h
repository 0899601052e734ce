// The ucx transport (K3): what UCX reaches, over a worker of the agent's own. Where its devices read and write the memory of
// the other side themselves (InfiniBand, RoCE), it moves bytes so; elsewhere it sends them as messages, and is not what the
// agent prefers. Messages are in ucx_wire.h, the endpoint in ucx_link.h, a peer seen from who asks in ucx_peer.h, from who is
// asked in ucx_service.h.
//
// Two agents have one link, whoever of them added the other. Who calls shows the nonce of our metadata and is told a key for
// all further messages; the network is trusted to be private beyond that.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>

#include "ucx_peer.h"
#include "ucx_service.h"

namespace millrace::kv {

TransportMaker ucx_transport();

class UcxTransport final : public Transport {
 public:
  // Null with the reason.
  static std::unique_ptr<Transport> make(const TransportSetup& setup, std::string* error);
  static TransportInfo probe();
  ~UcxTransport() override;

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
  int wait_descriptor() override { return epoll_; }

 private:
  // A link and both halves of what goes through it.
  struct Line {
    Line(UcxShared& shared, UcxAddress address)
        : link(shared, std::move(address)), peer(shared, link), service(shared, link) {}
    bool peer_needs_hello() const { return !is_ready && !has_called; }
    UcxLink link;
    UcxPeer peer;
    UcxService service;
    // 0 while the agent has not added it.
    uint32_t number = 0;
    bool has_called = false;
    bool is_ready = false;
    bool is_lost = false;
    // Told the host, when its operations have ended.
    bool is_told = false;
    bool has_process_ended = false;
    std::string why;
    // What the peer did wrong, until it is cut off for it: inside UCX nothing can be closed.
    std::string fault;
    // While it may stay open to send what is queued, though it is lost.
    uint64_t linger_until_ns = 0;
    // Notifications of an agent that is not added here yet.
    std::vector<std::vector<uint8_t>> held;
  };
  using Lines = std::map<uint64_t, std::unique_ptr<Line>>;

  UcxTransport() = default;
  Status open(const TransportSetup& setup, std::string* error);
  void end_worker();
  static UcsStatus received(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                            const UcpAmReceived* received);
  void take(std::span<const uint8_t> header, std::span<const uint8_t> payload);
  Status dispatch(Line& line, const UcxHeader& header, std::span<const uint8_t> payload, std::string* why);
  void take_hello(std::span<const uint8_t> payload);
  Status welcome(Line& line, std::span<const uint8_t> payload, std::string* why);
  void set_ready(Line& line, uint64_t peer_key);
  TcpVerdict judge(const TcpHello& hello, std::string* text) const;
  Line* connect(const UcxAddress& address, std::string* error);
  void say_hello(Line& line, const UcxAddress& address);
  Line* line_of(uint32_t peer);
  Line* line_of(const TcpUuid& uuid);
  void lose(Line& line, const std::string& why, uint64_t linger_until_ns);
  void forget(Line& line);
  bool poll_events();
  void tick(uint64_t now);
  bool tend(Line& line, uint64_t until);
  void expire(uint64_t now);
  void set_timer(bool is_busy);

  TransportInfo info_{};
  UcxShared shared_;
  int epoll_ = -1;
  int timer_ = -1;
  int worker_descriptor_ = -1;
  uint64_t tick_ns_ = 0;
  uint64_t seen_ns_ = 0;
  uint64_t moved_ns_ = 0;
  bool is_timer_busy_ = false;
  // By the key for messages to us.
  Lines lines_;
  std::map<uint32_t, Line*> peers_;
  std::map<int, Line*> processes_;
  // Came while UCX was in progress, which can make no endpoint then.
  std::vector<std::vector<uint8_t>> hellos_;
  std::unordered_map<uint64_t, std::pair<Line*, uint64_t>> operations_;
  std::set<std::pair<uint64_t, uint64_t>> deadlines_;
};

}  // namespace millrace::kv
