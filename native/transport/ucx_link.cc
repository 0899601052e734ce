// Endpoints and messages. See ucx_link.h.
#include "ucx_link.h"

#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "copy.h"
#include "crc32c.h"
#include "ucx_process.h"

namespace millrace::kv {
namespace {

uint64_t random_key() {
  uint64_t key = 0;
  while (key == 0) {
    if (getrandom(&key, sizeof key, 0) != sizeof key) key = 0;
  }
  return key;
}

// "lane[0]:  0:rc_mlx5/mlx5_0:1.0 md[0] -> … rma#0 am": the transports whose devices read and write memory.
bool names_rma_lane(const std::string& said) {
  size_t at = 0;
  while ((at = said.find("lane[", at)) != std::string::npos) {
    const std::string line = said.substr(at, said.find('\n', at) - at);
    at += line.size();
    const bool is_device = line.find(":rc_") != std::string::npos || line.find(":dc_") != std::string::npos;
    if (is_device && line.find(" rma") != std::string::npos) return true;
  }
  return false;
}

}  // namespace

uint32_t crc_of_runs(std::span<const Run> runs, const uint8_t* base, bool is_target, uint32_t every) {
  uint32_t crc = 0;
  for (const Run& run : runs) {
    if (every == 0 || run.block % every != 0) continue;
    const uint8_t* at = base + (is_target ? run.target : run.source);
    for (uint32_t i = 0; i < run.count; i++, at += is_target ? run.target_stride : run.source_stride) crc = crc32c(crc, at, run.length);
  }
  return crc;
}

UcxLink::UcxLink(UcxShared& shared, UcxAddress address) : own_key(random_key()), shared_(shared), address_(std::move(address)) {}

UcxLink::~UcxLink() {
  if (pidfd_ >= 0) ::close(pidfd_);
}

Status UcxLink::open(std::string* error) {
  begun_ns = shared_.host->now_ns();
  const UcxAddress& self = shared_.self;
  const bool shares = self.boot == address_.boot && self.pid_namespace == address_.pid_namespace && address_.has_shared_memory &&
                      self.has_shared_memory;
  if (shares) {
    pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, address_.pid, 0));
    // After it was opened, so that it is the process of that time or none.
    if (pidfd_ < 0 || process_start_time(address_.pid) != address_.start_time) {
      *error = "the peer's process " + std::to_string(address_.pid) + " is not there any more";
      return Status::kUnsupported;
    }
    is_same_host_ = true;
  }
  UcpEndpointParams params{};
  params.field_mask = kUcpEndpointAddress | kUcpEndpointErrorMode | kUcpEndpointErrorHandler;
  params.address = address_.worker.data();
  params.error_mode = is_same_host_ ? kUcpErrorModeNone : kUcpErrorModePeer;
  params.error_callback = failed;
  params.error_argument = this;
  const UcsStatus status = shared_.api().endpoint_create(shared_.worker, &params, &endpoint_);
  if (status == kUcsOk) return Status::kOk;
  endpoint_ = nullptr;
  *error = std::string("ucp_ep_create: ") + shared_.api().status_string(status);
  return Status::kUnsupported;
}

bool UcxLink::has_rma_lane() {
  if (rma_lane_ >= 0) return rma_lane_ == 1;
  char* text = nullptr;
  size_t size = 0;
  FILE* const stream = open_memstream(&text, &size);
  if (stream == nullptr) return false;
  shared_.api().endpoint_print(endpoint_, stream);
  std::fclose(stream);
  rma_lane_ = names_rma_lane({text, size}) ? 1 : 0;
  std::free(text);
  return rma_lane_ == 1;
}

// Inside UCX, which may not be called here.
void UcxLink::failed(void* argument, void*, UcsStatus status) { static_cast<UcxLink*>(argument)->failure_ = status; }

void UcxLink::send(UcxKind kind, uint64_t op, std::vector<uint8_t> payload, uint8_t flags, uint32_t frame) {
  if (is_closing_) return;
  Message& message = queue_.emplace_back();
  message.link = this;
  message.payload = std::move(payload);
  UcxHeader{kind, flags, peer_key, op, frame}.encode(message.header, message.payload);
  queued_bytes_ += message.payload.size();
  shared_.is_armed = false;
}

bool UcxLink::pump() {
  bool has_worked = false;
  while (!queue_.empty() && posted_.size() < kUcxSendsMax && !has_failed() && !is_closing_) {
    has_worked = true;
    posted_.splice(posted_.end(), queue_, queue_.begin());
    Message& message = posted_.back();
    message.place = std::prev(posted_.end());
    UcpRequestParams params{};
    params.attributes = kUcpOpCallback | kUcpOpUserData | kUcpOpFlags;
    // Not by rendezvous, in which the receiver would read our memory when it likes.
    params.flags = kUcpAmEager;
    params.callback = sent;
    params.user_data = &message;
    void* const request = shared_.api().am_send(endpoint_, kUcxMessageId, message.header, kUcxHeaderBytes, message.payload.data(),
                                                message.payload.size(), &params);
    if (shared_.api().is_error(request)) failure_ = shared_.api().error_of(request);
    if (request != nullptr && !has_failed()) continue;
    queued_bytes_ -= message.payload.size();
    posted_.pop_back();
  }
  return has_worked;
}

void UcxLink::sent(void* request, UcsStatus status, void* user_data) {
  Message& message = *static_cast<Message*>(user_data);
  UcxLink& link = *message.link;
  link.shared_.api().request_free(request);
  if (status != kUcsOk && link.failure_ == kUcsOk) link.failure_ = status;
  link.queued_bytes_ -= message.payload.size();
  link.posted_.erase(message.place);
}

void UcxLink::close() {
  if (std::exchange(is_closing_, true)) return;
  queue_.clear();
  if (endpoint_ == nullptr) {
    is_closed_ = true;
    return;
  }
  UcpRequestParams params{};
  params.attributes = kUcpOpCallback | kUcpOpUserData | kUcpOpFlags;
  params.flags = is_same_host_ ? 0 : kUcpCloseForce;
  params.callback = closed;
  params.user_data = this;
  void* const request = shared_.api().endpoint_close(endpoint_, &params);
  shared_.is_armed = false;
  is_closed_ = request == nullptr || shared_.api().is_error(request);
  if (!is_closed_) close_request_ = request;
}

void UcxLink::abandon() {
  if (close_request_ != nullptr) shared_.api().request_free(std::exchange(close_request_, nullptr));
}

void UcxLink::closed(void* request, UcsStatus, void* user_data) {
  auto& link = *static_cast<UcxLink*>(user_data);
  if (std::exchange(link.close_request_, nullptr) != nullptr) link.shared_.api().request_free(request);
  link.is_closed_ = true;
}

}  // namespace millrace::kv
