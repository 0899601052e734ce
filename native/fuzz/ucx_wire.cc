// What ucx transports say to each other, and the address in their metadata, with the checksums that belong to them, or
// nothing would come past the first check. What is accepted stays within its limits, and means the same when it is written
// anew. ucx_hostile in native/test/transfer sends such bytes to whole transports.
#include <cstdlib>
#include <cstring>

#include "crc32c.h"
#include "tcp_wire.h"
#include "ucx_wire.h"

namespace {

using namespace millrace::kv;

void set_crc(std::vector<uint8_t>* bytes, size_t at, size_t covered) {
  const uint32_t crc = crc32c(0, bytes->data(), covered);
  std::memcpy(bytes->data() + at, &crc, sizeof(crc));
}

// Reads, and where that works writes and reads again.
template <class Words>
bool holds(std::span<const uint8_t> bytes) {
  Words first, second;
  std::string error;
  if (Words::decode(bytes, &first, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return false;
  }
  const std::vector<uint8_t> again = first.encode();
  if (Words::decode(again, &second, &error) != Status::kOk || second.encode() != again) std::abort();
  return true;
}

void parse_address(std::vector<uint8_t> bytes) {
  if (bytes.size() < 4) return;
  set_crc(&bytes, bytes.size() - 4, bytes.size() - 4);
  UcxAddress first, second;
  std::string error;
  if (UcxAddress::decode(bytes, &first, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return;
  }
  if (first.pools.size() > kTcpPoolsMax || first.worker.size() > kUcxAddressBytesMax) std::abort();
  std::vector<uint8_t> again, and_again;
  first.encode(&again);
  if (UcxAddress::decode(again, &second, &error) != Status::kOk) std::abort();
  second.encode(&and_again);
  if (again != and_again) std::abort();
}

void parse_message(std::vector<uint8_t> head, std::span<const uint8_t> payload) {
  const uint32_t payload_crc = crc32c(0, payload.data(), payload.size());
  std::memcpy(head.data() + 28, &payload_crc, sizeof(payload_crc));
  set_crc(&head, 32, 32);
  UcxHeader header;
  std::string error;
  if (UcxHeader::decode(head, payload, &header, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return;
  }
  uint8_t again[kUcxHeaderBytes];
  header.encode(again, payload);
  UcxHeader second;
  if (UcxHeader::decode(again, payload, &second, &error) != Status::kOk || second.op != header.op) std::abort();
  TcpRequest request;
  TcpLayout layout;
  TcpDone done;
  switch (header.kind) {
    case UcxKind::kHello: {
      // Its address carries a checksum of its own.
      std::vector<uint8_t> hello(payload.begin(), payload.end());
      uint32_t listed = 0;
      if (hello.size() >= 4) std::memcpy(&listed, hello.data(), 4);
      const size_t address = size_t{4} + listed + 8;
      if (hello.size() >= address + 4) {
        const uint32_t crc = crc32c(0, hello.data() + address, hello.size() - address - 4);
        std::memcpy(hello.data() + hello.size() - 4, &crc, sizeof(crc));
      }
      holds<UcxHello>(hello);
      break;
    }
    case UcxKind::kWelcome: holds<UcxWelcome>(payload); break;
    case UcxKind::kEnd: holds<UcxEnd>(payload); break;
    case UcxKind::kLayout: TcpLayout::decode(payload, &layout, &error); break;
    case UcxKind::kRead:
    case UcxKind::kWrite:
      if (TcpRequest::decode(payload, &request, &error) == Status::kOk &&
          request.peer_blocks.size() != request.own_blocks.size())
        std::abort();
      break;
    case UcxKind::kDone: TcpDone::decode(payload, &done, &error); break;
    default: break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  parse_address({bytes, bytes + size});
  if (size >= kUcxHeaderBytes)
    parse_message({bytes, bytes + kUcxHeaderBytes}, {bytes + kUcxHeaderBytes, size - kUcxHeaderBytes});
  return 0;
}
