// Reading frames and data from a socket, and writing them, one vector at a time. See tcp_connection.h.
#include "tcp_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "crc32c.h"

namespace millrace::kv {
namespace {

constexpr size_t kWasteBytes = 256 * 1024;
constexpr int kEventsAtOnce = 64;
// Data of a frame that is checked: few enough that they are in the cache still when they are copied, and so many that the
// receiver is not woken for each. Measured with native/bench/tcp_bench.cc.
constexpr uint64_t kCheckedBytes = 512 * 1024;
// Of the next piece, while one is checked: the processor foresees nothing across pieces.
constexpr size_t kAheadBytes = 2048;
// Calls of one kind in one turn.
constexpr int kCallsPerTurn = 2;

bool would_block(int code) { return code == EAGAIN || code == EWOULDBLOCK || code == EINTR; }

bool is_checked(const TcpFlow& flow) {
  return flow.integrity == Integrity::kFull || (flow.integrity == Integrity::kSample && flow.frames % kSampleBlocks == 0);
}

void ask_ahead(const iovec& piece) {
  for (size_t i = 0; i < std::min(piece.iov_len, kAheadBytes); i += 64)
    __builtin_prefetch(static_cast<const uint8_t*>(piece.iov_base) + i);
}

}  // namespace

TcpLoop::~TcpLoop() {
  if (epoll_ >= 0) close(epoll_);
}

Status TcpLoop::open(std::string* error) {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) {
    *error = std::string("epoll_create1: ") + std::strerror(errno);
    return Status::kSystem;
  }
  waste_.resize(kWasteBytes);
  return Status::kOk;
}

Status TcpLoop::watch(int descriptor, uint32_t events, TcpWatched* watched, std::string* error) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = watched;
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event) == 0) return Status::kOk;
  *error = std::string("epoll_ctl: ") + std::strerror(errno);
  return Status::kSystem;
}

bool TcpLoop::poll() {
  epoll_event events[kEventsAtOnce];
  const int count = epoll_wait(epoll_, events, kEventsAtOnce, 0);
  // Nothing is destroyed before end_dead, so that each pointer is good.
  for (int i = 0; i < count; i++) static_cast<TcpWatched*>(events[i].data.ptr)->ready(events[i].events);
  return count > 0;
}

void TcpLoop::queue(TcpConnection* connection) {
  if (connection->is_in_turns || connection->is_dead()) return;
  connection->is_in_turns = true;
  turns_.push_back(connection);
}

void TcpLoop::forget(TcpConnection* connection) {
  if (connection->is_in_turns) std::erase(turns_, connection);
  std::erase(dead_, connection);
}

// The owner of one may destroy others.
void TcpLoop::end_dead() {
  while (!dead_.empty()) {
    TcpConnection* const connection = dead_.back();
    dead_.pop_back();
    connection->end();
  }
}

std::unique_ptr<TcpConnection> TcpConnection::open(TcpLoop& loop, TcpConnectionOwner& owner, int descriptor,
                                                   uint32_t buffer_bytes, std::string* error) {
  std::unique_ptr<TcpConnection> made(new TcpConnection(loop, owner, descriptor));
  const int one = 1;
  // Refused only for a socket that has failed already, which the first read says.
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  if (buffer_bytes != 0) {
    const int size = static_cast<int>(buffer_bytes);
    setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
  }
  if (loop.watch(descriptor, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, made.get(), error) != Status::kOk) return nullptr;
  return made;
}

TcpConnection::~TcpConnection() {
  loop_.forget(this);
  close(descriptor_);
}

void TcpConnection::fail(const std::string& why) {
  if (is_dead_) return;
  is_dead_ = true;
  why_ = why;
  loop_.bury(this);
}

void TcpConnection::fail_after_sending(const std::string& why) {
  ends_after_sending_ = true;
  why_ = why;
  kick();
}

void TcpConnection::reset_on_close() {
  const linger at_once{1, 0};
  setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

void TcpConnection::ready(uint32_t events) {
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) is_hung_up_ = true;
  if ((events & EPOLLIN) != 0 || is_hung_up_) is_readable_ = true;
  if ((events & EPOLLOUT) != 0) is_writable_ = true;
  kick();
}

bool TcpConnection::turn() {
  bool has_worked = false;
  for (int i = 0; i < kCallsPerTurn && is_readable_ && !is_dead_ && !ends_after_sending_; i++) has_worked |= read_some();
  for (int i = 0; i < kCallsPerTurn && is_writable_ && !is_dead_; i++) {
    if (!write_some()) break;
    has_worked = true;
  }
  return has_worked && !is_dead_;
}

// ---- in

size_t TcpConnection::destination(std::span<iovec> out, uint64_t* bytes) {
  *bytes = 0;
  if (flow_->is_discarded) {
    *bytes = std::min<uint64_t>(data_left_, loop_.waste().size());
    out[0] = {loop_.waste().data(), *bytes};
    return 1;
  }
  if (flow_->cursor.piece_bytes() >= kTcpBounceBelow) return flow_->cursor.peek(data_left_, out, bytes);
  if (bounce_in_.empty()) bounce_in_.resize(kTcpBounceBytes);
  *bytes = std::min<uint64_t>(data_left_, bounce_in_.size());
  out[0] = {bounce_in_.data(), *bytes};
  return 1;
}

bool TcpConnection::read_some() {
  iovec pieces[kTcpIovecs];
  size_t count = 0;
  uint64_t data_bytes = 0;
  uint64_t payload_bytes = 0;
  if (flow_ != nullptr) {
    count = destination({pieces, kTcpIovecs - 1}, &data_bytes);
  } else if (has_header_) {
    payload_bytes = payload_.size() - payload_have_;
    pieces[count++] = {payload_.data() + payload_have_, payload_bytes};
  }
  const size_t data_pieces = count;
  uint64_t asked = data_bytes + payload_bytes;
  // The frame after it is read along, where nothing of this one can come behind.
  if (data_bytes == (flow_ != nullptr ? data_left_ : 0)) {
    const size_t kept = input_end_ - input_begin_;
    std::memmove(input_, input_ + input_begin_, kept);
    input_begin_ = 0;
    input_end_ = kept;
    pieces[count++] = {input_ + kept, sizeof(input_) - kept};
    asked += sizeof(input_) - kept;
  }
  const ssize_t got = readv(descriptor_, pieces, static_cast<int>(count));
  if (got < 0 && would_block(errno)) {
    is_readable_ = errno == EINTR;
    return false;
  }
  if (got <= 0) {
    fail(got == 0 ? "the peer closed the connection" : std::string("reading: ") + std::strerror(errno));
    return false;
  }
  auto rest = static_cast<uint64_t>(got);
  if (data_bytes != 0) {
    const uint64_t data = std::min(rest, data_bytes);
    take_data({pieces, data_pieces}, data);
    rest -= data;
  } else if (payload_bytes != 0) {
    const uint64_t part = std::min(rest, payload_bytes);
    payload_have_ += part;
    rest -= part;
    if (payload_have_ == payload_.size()) end_frame(payload_);
  }
  input_end_ += rest;
  parse_input();
  // A short read has emptied the socket: what comes later is an event of its own. An end has had its event already.
  if (static_cast<uint64_t>(got) < asked) is_readable_ = is_hung_up_;
  return true;
}

// Frames, and beginnings of frames, from what was read along.
void TcpConnection::parse_input() {
  while (!is_dead_ && !ends_after_sending_) {
    const size_t have = input_end_ - input_begin_;
    uint8_t* const at = input_ + input_begin_;
    if (flow_ != nullptr) {
      if (have == 0) return;
      const uint64_t bytes = std::min<uint64_t>(have, data_left_);
      if (!flow_->is_discarded) flow_->cursor.scatter(at, bytes);
      if (is_checked(*flow_)) data_crc_ = crc32c(data_crc_, at, bytes);
      input_begin_ += bytes;
      flow_->left -= bytes;
      data_left_ -= bytes;
      if (data_left_ == 0) end_data();
    } else if (has_header_) {
      const size_t bytes = std::min(have, payload_.size() - payload_have_);
      std::memcpy(payload_.data() + payload_have_, at, bytes);
      payload_have_ += bytes;
      input_begin_ += bytes;
      if (payload_have_ < payload_.size()) return;
      end_frame(payload_);
    } else {
      if (have < kTcpHeaderBytes) return;
      std::string why;
      if (TcpHeader::decode(at, &header_, &why) != Status::kOk) return fail(why);
      input_begin_ += kTcpHeaderBytes;
      begin_frame();
    }
  }
}

void TcpConnection::begin_frame() {
  has_header_ = true;
  if (header_.kind != TcpKind::kData) {
    if (input_end_ - input_begin_ >= header_.length) {
      input_begin_ += header_.length;
      return end_frame({input_ + input_begin_ - header_.length, header_.length});
    }
    payload_.resize(header_.length);
    payload_have_ = 0;
    return;
  }
  std::string why;
  TcpFlow* const flow = owner_.data(*this, header_, &why);
  if (flow == nullptr) return fail(why);
  if (header_.length > flow->left)
    return fail("data of a request are " + std::to_string(header_.length) + " bytes where " + std::to_string(flow->left) + " were left");
  if (is_checked(*flow) != ((header_.flags & kTcpChecked) != 0)) return fail("data are not checked as the request has it");
  flow_ = flow;
  data_left_ = header_.length;
  data_crc_ = 0;
}

void TcpConnection::end_frame(std::span<const uint8_t> payload) {
  has_header_ = false;
  if (crc32c(0, payload.data(), payload.size()) != header_.payload_crc) return fail("payload crc of a frame differs");
  std::string why;
  if (owner_.frame(*this, header_, payload, &why) != Status::kOk) fail(why);
}

void TcpConnection::take_data(std::span<const iovec> pieces, uint64_t bytes) {
  if (is_checked(*flow_)) {
    uint64_t rest = bytes;
    for (size_t i = 0; rest > 0; i++) {
      const uint64_t length = std::min<uint64_t>(rest, pieces[i].iov_len);
      data_crc_ = crc32c(data_crc_, pieces[i].iov_base, length);
      rest -= length;
    }
  }
  if (!flow_->is_discarded) {
    if (flow_->cursor.piece_bytes() >= kTcpBounceBelow) flow_->cursor.advance(bytes);
    else flow_->cursor.scatter(bounce_in_.data(), bytes);
  }
  flow_->left -= bytes;
  data_left_ -= bytes;
  if (data_left_ == 0) end_data();
}

void TcpConnection::end_data() {
  TcpFlow& flow = *flow_;
  const bool is_corrupt = is_checked(flow) && data_crc_ != header_.payload_crc;
  flow_ = nullptr;
  has_header_ = false;
  flow.frames++;
  owner_.arrived(*this, flow, is_corrupt);
}

// ---- out

void TcpConnection::send(TcpHeader header, std::span<const uint8_t> payload) {
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = crc32c(0, payload.data(), payload.size());
  const size_t at = control_.size();
  control_.resize(at + kTcpHeaderBytes);
  header.encode(control_.data() + at);
  control_.insert(control_.end(), payload.begin(), payload.end());
  kick();
}

void TcpConnection::fill_batch() {
  batch_begin_ = batch_end_ = 0;
  batch_control_.clear();
  batch_tail_.clear();
  batch_flow_ = nullptr;
  // May queue frames too.
  TcpFlow* const flow = ends_after_sending_ ? nullptr : owner_.outgoing(*this);
  if (!control_.empty()) {
    batch_control_.swap(control_);
    batch_[batch_end_++] = {batch_control_.data(), batch_control_.size()};
  }
  if (flow != nullptr) add_data(*flow);
}

void TcpConnection::add_data(TcpFlow& flow) {
  TcpHeader header;
  header.kind = TcpKind::kData;
  header.op = flow.op;
  header.part = flow.part;
  iovec& head = batch_[batch_end_++];
  iovec* const pieces = batch_ + batch_end_;
  const bool checked = is_checked(flow);
  uint64_t bytes = std::min<uint64_t>(flow.left, checked ? kCheckedBytes : kTcpDataBytesMax);
  size_t count = 1;
  if (flow.cursor.piece_bytes() >= kTcpBounceBelow) {
    count = flow.cursor.peek(bytes, {pieces, kTcpIovecs - 1 - batch_end_}, &bytes);
    flow.cursor.advance(bytes);
  } else {
    if (bounce_out_.empty()) bounce_out_.resize(kTcpBounceBytes);
    bytes = std::min<uint64_t>(bytes, bounce_out_.size());
    flow.cursor.gather(bounce_out_.data(), bytes);
    pieces[0] = {bounce_out_.data(), bytes};
  }
  if (checked) {
    header.flags = kTcpChecked;
    for (size_t i = 0; i < count; i++) {
      if (i + 1 < count) ask_ahead(pieces[i + 1]);
      header.payload_crc = crc32c(header.payload_crc, pieces[i].iov_base, pieces[i].iov_len);
    }
  }
  header.length = static_cast<uint32_t>(bytes);
  header.encode(batch_header_);
  head = {batch_header_, kTcpHeaderBytes};
  batch_end_ += count;
  flow.left -= bytes;
  flow.frames++;
  batch_flow_ = &flow;
  if (flow.left > 0) return;
  owner_.ending(*this, flow);
  if (control_.empty()) return;
  batch_tail_.swap(control_);
  batch_[batch_end_++] = {batch_tail_.data(), batch_tail_.size()};
}

bool TcpConnection::write_some() {
  if (batch_begin_ == batch_end_) fill_batch();
  if (batch_begin_ == batch_end_) {
    if (ends_after_sending_) fail(why_);
    return false;
  }
  msghdr message{};
  message.msg_iov = batch_ + batch_begin_;
  message.msg_iovlen = batch_end_ - batch_begin_;
  const ssize_t sent = sendmsg(descriptor_, &message, MSG_NOSIGNAL);
  if (sent < 0) {
    if (would_block(errno)) is_writable_ = errno == EINTR;
    else fail(std::string("writing: ") + std::strerror(errno));
    return false;
  }
  auto rest = static_cast<uint64_t>(sent);
  while (batch_begin_ < batch_end_ && rest >= batch_[batch_begin_].iov_len) rest -= batch_[batch_begin_++].iov_len;
  if (batch_begin_ < batch_end_) {
    iovec& next = batch_[batch_begin_];
    next = {static_cast<uint8_t*>(next.iov_base) + rest, next.iov_len - rest};
    is_writable_ = false;
    return true;
  }
  TcpFlow* const flow = std::exchange(batch_flow_, nullptr);
  if (flow != nullptr) owner_.sent(*this, *flow);
  return true;
}

}  // namespace millrace::kv
