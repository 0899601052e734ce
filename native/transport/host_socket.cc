// The control socket between two processes of one host: messages, descriptors and credentials. See host_socket.h.
#include "host_socket.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

namespace millrace::kv {
namespace {

constexpr int kBacklog = 256;

// False when the name is too long.
bool abstract_address(const std::string& name, sockaddr_un* out, socklen_t* length) {
  if (name.empty() || name.size() > sizeof out->sun_path - 1) return false;
  *out = {};
  out->sun_family = AF_UNIX;
  std::memcpy(out->sun_path + 1, name.data(), name.size());
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return true;
}

int open_socket(const std::string& name, int (*attach)(int, const sockaddr*, socklen_t)) {
  sockaddr_un address;
  socklen_t length = 0;
  if (!abstract_address(name, &address, &length)) {
    errno = ENAMETOOLONG;
    return -1;
  }
  const int descriptor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return -1;
  if (attach(descriptor, reinterpret_cast<const sockaddr*>(&address), length) == 0) return descriptor;
  const int why = errno;
  close(descriptor);
  errno = why;
  return -1;
}

}  // namespace

int HostSocket::listen_at(const std::string& name) {
  return open_socket(name, [](int descriptor, const sockaddr* address, socklen_t length) {
    const int status = bind(descriptor, address, length);
    return status == 0 ? listen(descriptor, kBacklog) : status;
  });
}

int HostSocket::connect_to(const std::string& name) {
  return open_socket(name, [](int descriptor, const sockaddr* address, socklen_t length) {
    return connect(descriptor, address, length);
  });
}

HostSocket::HostSocket(int descriptor, int epoll) : descriptor_(descriptor), epoll_(epoll) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = descriptor_;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor_, &event) != 0) is_broken_ = true;
}

void HostSocket::watch() {
  if (watches_output_ == !queue_.empty()) return;
  watches_output_ = !queue_.empty();
  epoll_event event{};
  event.events = watches_output_ ? EPOLLIN | EPOLLOUT : EPOLLIN;
  event.data.fd = descriptor_;
  if (epoll_ctl(epoll_, EPOLL_CTL_MOD, descriptor_, &event) != 0) is_broken_ = true;
}

HostSocket::~HostSocket() {
  drop_received();
  for (const Outgoing& outgoing : queue_) {
    for (const int descriptor : outgoing.descriptors) close(descriptor);
  }
  epoll_ctl(epoll_, EPOLL_CTL_DEL, descriptor_, nullptr);
  close(descriptor_);
}

bool HostSocket::process(HostProcess* out) const {
  ucred facts;
  socklen_t length = sizeof facts;
  if (getsockopt(descriptor_, SOL_SOCKET, SO_PEERCRED, &facts, &length) != 0) return false;
  *out = {facts.pid, facts.uid};
  return true;
}

void HostSocket::send(HostMessage message, uint64_t id, std::span<const uint8_t> head, std::span<const uint8_t> tail,
                      std::span<const int> descriptors) {
  const HostHeader header{static_cast<uint32_t>(message), static_cast<uint32_t>(head.size() + tail.size()), id};
  Outgoing outgoing;
  outgoing.bytes.reserve(sizeof header + header.bytes);
  for (const std::span<const uint8_t> part : {bytes_of(header), head, tail}) {
    outgoing.bytes.insert(outgoing.bytes.end(), part.begin(), part.end());
  }
  for (const int descriptor : descriptors) {
    const int twin = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (twin < 0) is_broken_ = true;
    if (twin >= 0) outgoing.descriptors.push_back(twin);
  }
  queued_bytes_ += outgoing.bytes.size();
  queue_.push_back(std::move(outgoing));
  flush();
}

// True when the first message of the queue has gone; else errno says why not.
bool HostSocket::send_front() {
  Outgoing& outgoing = queue_.front();
  iovec bytes{outgoing.bytes.data(), outgoing.bytes.size()};
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (!outgoing.descriptors.empty()) {
    const size_t size = outgoing.descriptors.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(rights), outgoing.descriptors.data(), size);
  }
  ssize_t sent = 0;
  do {
    sent = sendmsg(descriptor_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return false;
  for (const int descriptor : outgoing.descriptors) close(descriptor);
  queued_bytes_ -= outgoing.bytes.size();
  queue_.pop_front();
  return true;
}

bool HostSocket::flush() {
  while (!is_broken_ && !queue_.empty() && send_front()) continue;
  if (!queue_.empty() && errno != EAGAIN && errno != ENOBUFS) is_broken_ = true;
  if (!is_broken_) watch();
  return !is_broken_;
}

void HostSocket::drop_received() {
  for (const int descriptor : received_) {
    if (descriptor >= 0) close(descriptor);
  }
  received_ = {-1, -1};
}

int HostSocket::take_descriptor() {
  for (int& descriptor : received_) {
    if (descriptor >= 0) return std::exchange(descriptor, -1);
  }
  return -1;
}

HostSocket::Received HostSocket::receive(Incoming* out) {
  drop_received();
  buffer_.resize(sizeof(HostHeader) + kHostPayloadMax);
  iovec bytes{buffer_.data(), buffer_.size()};
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(2 * sizeof(int))];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t size = 0;
  do {
    size = recvmsg(descriptor_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  if (size < 0 && errno == EAGAIN) return Received::kNothing;
  for (cmsghdr* part = size > 0 ? CMSG_FIRSTHDR(&message) : nullptr; part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    std::memcpy(received_.data(), CMSG_DATA(part), std::min(count, received_.size()) * sizeof(int));
  }
  if (size < static_cast<ssize_t>(sizeof(HostHeader)) || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return Received::kClosed;
  }
  std::memcpy(&out->header, buffer_.data(), sizeof out->header);
  out->payload = {buffer_.data() + sizeof out->header, static_cast<size_t>(size) - sizeof out->header};
  return out->header.bytes == out->payload.size() ? Received::kMessage : Received::kClosed;
}

}  // namespace millrace::kv
