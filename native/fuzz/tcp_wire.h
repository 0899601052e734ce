// Whatever bytes come, the parsers of the tcp transport answer with a value or an error: what the fuzz target and the random
// tests call.
#pragma once

#include <cstdlib>
#include <cstring>

#include "../transfer/crc32c.h"
#include "../transport/tcp_wire.h"

namespace millrace::kv::fuzz {

inline void parse_payload(TcpKind kind, std::span<const uint8_t> bytes) {
  std::string error;
  Status status = Status::kOk;
  TcpHello hello;
  TcpReply reply;
  TcpRequest request;
  TcpLayout layout;
  TcpDone done;
  switch (kind) {
    case TcpKind::kHello: status = TcpHello::decode(bytes, &hello, &error); break;
    case TcpKind::kReply: status = TcpReply::decode(bytes, &reply, &error); break;
    case TcpKind::kLayout: status = TcpLayout::decode(bytes, &layout, &error); break;
    case TcpKind::kRead:
    case TcpKind::kWrite: status = TcpRequest::decode(bytes, &request, &error); break;
    case TcpKind::kDone: status = TcpDone::decode(bytes, &done, &error); break;
    default: break;
  }
  // A refusal says why; what was accepted is within its limits.
  if (status != Status::kOk && error.empty()) std::abort();
  if (hello.pools.size() > kTcpPoolsMax || reply.text.size() > kTcpTextMax || done.text.size() > kTcpTextMax) std::abort();
  if (status == Status::kOk && request.peer_blocks.size() != request.own_blocks.size()) std::abort();
}

inline void parse_tcp(const uint8_t* bytes, size_t size) {
  std::string error;
  TcpAddress address;
  if (TcpAddress::decode({bytes, size}, &address, &error) == Status::kOk && address.hosts.size() > kTcpHostsMax) std::abort();
  if (size < kTcpHeaderBytes) return;
  // With the checksum that belongs to it, or nothing would come past the first check.
  uint8_t header_bytes[kTcpHeaderBytes];
  std::memcpy(header_bytes, bytes, kTcpHeaderBytes);
  const uint32_t crc = crc32c(0, header_bytes, 28);
  std::memcpy(header_bytes + 28, &crc, sizeof(crc));
  TcpHeader header;
  error.clear();
  if (TcpHeader::decode(header_bytes, &header, &error) == Status::kOk)
    parse_payload(header.kind, {bytes + kTcpHeaderBytes, size - kTcpHeaderBytes});
  else if (error.empty())
    std::abort();
}

}  // namespace millrace::kv::fuzz
