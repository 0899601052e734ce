// One endpoint of UCX, to one life of another agent, and the messages through it. Progress thread only.
//
// Endpoints to other hosts have UCX's own detection of failure and can be closed by force. On one host that detection rules
// the lanes of shared memory out, so there the endpoint has none: a pidfd tells when the other process has ended, and until
// then it may still reach what it was granted.
#pragma once

#include <list>
#include <memory>

#include "ucx_shared.h"

namespace millrace::kv {

// Messages that UCX has and has not finished with.
inline constexpr size_t kUcxSendsMax = 64;

class UcxLink {
 public:
  UcxLink(UcxShared& shared, UcxAddress address);
  // Once it is closed, or the worker is gone.
  ~UcxLink();
  UcxLink(const UcxLink&) = delete;

  // Makes the endpoint. kUnsupported with the reason.
  Status open(std::string* error);

  const UcxAddress& address() const { return address_; }
  void* endpoint() const { return endpoint_; }
  // Both on this host, with memory that both can share, and with a process number that both understand.
  bool is_same_host() const { return is_same_host_; }
  // -1 where the process cannot be watched.
  int process() const { return pidfd_; }
  // Whether a lane of it moves bytes of memory by itself, as far as devices go. Known after the first message has come.
  bool has_rma_lane();

  // Queues a message; dropped once the link is closing.
  void send(UcxKind kind, uint64_t op, std::vector<uint8_t> payload, uint8_t flags = 0, uint32_t frame = 0);
  size_t queued_bytes() const { return queued_bytes_; }
  // Room for one more message of data at once.
  bool has_room() const { return queue_.size() + posted_.size() < kUcxSendsMax; }
  // Gives UCX what is queued, as far as there is room. True when there was something.
  bool pump();

  bool is_idle() const { return queue_.empty() && posted_.empty(); }

  // UCX has said that the endpoint has failed.
  bool has_failed() const { return failure_ != kUcsOk; }
  UcsStatus failure() const { return failure_; }

  // No message goes out any more. What is in flight ends, by force where that is possible.
  void close();
  // Before the worker goes: gives back what UCX still closes.
  void abandon();
  bool is_closing() const { return is_closing_; }
  // No operation through the endpoint is in flight any more, nor will be one of the peer's.
  bool is_closed() const { return is_closed_; }

  // For messages to us, and, once it has been told, for messages to the peer.
  const uint64_t own_key;
  uint64_t peer_key = 0;
  uint64_t begun_ns = 0;
  uint64_t heard_ns = 0;
  uint64_t beat_ns = 0;

 private:
  struct Message {
    UcxLink* link;
    uint8_t header[kUcxHeaderBytes];
    std::vector<uint8_t> payload;
    std::list<Message>::iterator place;
  };

  static void failed(void* argument, void* endpoint, UcsStatus status);
  static void sent(void* request, UcsStatus status, void* user_data);
  static void closed(void* request, UcsStatus status, void* user_data);

  UcxShared& shared_;
  const UcxAddress address_;
  void* endpoint_ = nullptr;
  // While it closes.
  void* close_request_ = nullptr;
  int pidfd_ = -1;
  bool is_same_host_ = false;
  bool is_closing_ = false;
  bool is_closed_ = false;
  UcsStatus failure_ = kUcsOk;
  int8_t rma_lane_ = -1;
  size_t queued_bytes_ = 0;
  std::list<Message> queue_;
  std::list<Message> posted_;
};

}  // namespace millrace::kv
