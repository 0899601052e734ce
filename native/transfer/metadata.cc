// What an agent tells its peers of itself, to bytes and back; the reader trusts none of them. See metadata.h.
#include "metadata.h"

#include "crc32c.h"
#include "words.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kMagic = 0x444d'4b4d;  // "MKMD"
constexpr uint8_t kFlagGenerations = 1;
constexpr uint32_t kLayoutBytesMax = 64 * 1024;
constexpr uint32_t kTransportNameBytesMax = 32;

Status damaged(std::string* error, const std::string& what) {
  *error = "metadata of a peer: " + what;
  return Status::kInvalid;
}

std::string version_text(uint16_t major, uint16_t minor) { return std::to_string(major) + "." + std::to_string(minor); }

void put_bytes(std::vector<uint8_t>* out, const void* start, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(start);
  out->insert(out->end(), bytes, bytes + size);
}

Status decode_pools(WordReader& in, std::vector<PoolDescription>* out, std::string* error) {
  const auto count = in.take<uint16_t>();
  if (count > kPoolsMax) return damaged(error, "pools must be at most " + std::to_string(kPoolsMax));
  for (uint32_t i = 0; i < count; i++) {
    PoolDescription pool;
    pool.id = in.take<uint32_t>();
    const auto flags = in.take<uint8_t>();
    const auto kind = in.take<uint8_t>();
    const auto size = in.take<uint32_t>();
    const std::string name = "pools[" + std::to_string(i) + "]";
    if (in.failed() || size > kLayoutBytesMax) return damaged(error, name + " is cut off or its layout too long");
    if (kind > static_cast<uint8_t>(MemoryKind::kDevice)) return damaged(error, name + " has an unknown kind of memory");
    for (const PoolDescription& other : *out)
      if (other.id == pool.id) return damaged(error, name + " has the id of another pool");
    pool.has_generations = (flags & kFlagGenerations) != 0;
    pool.kind = static_cast<MemoryKind>(kind);
    const std::span<const uint8_t> layout = in.bytes(size);
    if (in.failed()) return damaged(error, name + " is cut off");
    if (Layout::decode(layout.data(), layout.size(), &pool.layout, error) != Status::kOk)
      return damaged(error, name + ": " + *error);
    out->push_back(std::move(pool));
  }
  return Status::kOk;
}

Status decode_transports(WordReader& in, std::vector<TransportDescription>* out, std::string* error) {
  const auto count = in.take<uint16_t>();
  if (count > kTransportsMax) return damaged(error, "transports must be at most " + std::to_string(kTransportsMax));
  for (uint32_t i = 0; i < count; i++) {
    TransportDescription transport;
    const auto name_bytes = in.take<uint8_t>();
    if (name_bytes > kTransportNameBytesMax) return damaged(error, "the name of a transport is too long");
    transport.name = in.text(name_bytes);
    const std::span<const uint8_t> described = in.bytes(in.take<uint32_t>());
    if (in.failed()) return damaged(error, "transports[" + std::to_string(i) + "] is cut off");
    for (const TransportDescription& other : *out)
      if (other.name == transport.name) return damaged(error, "a transport is there twice");
    transport.described.assign(described.begin(), described.end());
    out->push_back(std::move(transport));
  }
  return Status::kOk;
}

}  // namespace

std::vector<uint8_t> Metadata::encode() const {
  std::vector<uint8_t> out;
  put<uint32_t>(&out, kMagic);
  put<uint16_t>(&out, kProtocolMajor);
  put<uint16_t>(&out, kProtocolMinor);
  put_bytes(&out, uuid.data(), uuid.size());
  put<uint64_t>(&out, epoch);
  put<uint16_t>(&out, static_cast<uint16_t>(name.size()));
  put_bytes(&out, name.data(), name.size());
  put<uint16_t>(&out, static_cast<uint16_t>(pools.size()));
  for (const PoolDescription& pool : pools) {
    std::vector<uint8_t> layout;
    pool.layout.encode(&layout);
    put<uint32_t>(&out, pool.id);
    put<uint8_t>(&out, pool.has_generations ? kFlagGenerations : 0);
    put<uint8_t>(&out, static_cast<uint8_t>(pool.kind));
    put<uint32_t>(&out, static_cast<uint32_t>(layout.size()));
    put_bytes(&out, layout.data(), layout.size());
  }
  put<uint16_t>(&out, static_cast<uint16_t>(transports.size()));
  for (const TransportDescription& transport : transports) {
    put<uint8_t>(&out, static_cast<uint8_t>(transport.name.size()));
    put_bytes(&out, transport.name.data(), transport.name.size());
    put<uint32_t>(&out, static_cast<uint32_t>(transport.described.size()));
    put_bytes(&out, transport.described.data(), transport.described.size());
  }
  put<uint32_t>(&out, crc32c(0, out.data(), out.size()));
  return out;
}

Status Metadata::decode(std::span<const uint8_t> bytes, Metadata* out, std::string* error) {
  *out = {};
  if (bytes.size() > kMetadataBytesMax)
    return damaged(error, "must have at most " + std::to_string(kMetadataBytesMax) + " bytes");
  WordReader head(bytes.data(), bytes.size());
  if (head.take<uint32_t>() != kMagic) return damaged(error, "these bytes are not metadata of an agent");
  const auto major = head.take<uint16_t>();
  const auto minor = head.take<uint16_t>();
  if (head.failed()) return damaged(error, "is cut off");
  // Before anything else is looked at: another version may mean other fields by the same bytes.
  if (major != kProtocolMajor) {
    *error = "protocol version differs: " + version_text(kProtocolMajor, kProtocolMinor) + " here, " +
             version_text(major, minor) + " at the peer";
    return Status::kMismatch;
  }
  if (head.left() < sizeof(uint32_t)) return damaged(error, "is cut off");
  const size_t body = bytes.size() - sizeof(uint32_t);
  uint32_t crc;
  std::memcpy(&crc, bytes.data() + body, sizeof(crc));
  if (crc != crc32c(0, bytes.data(), body)) return damaged(error, "its checksum is wrong");
  WordReader in(bytes.data() + 8, body - 8);
  const std::span<const uint8_t> uuid = in.bytes(out->uuid.size());
  if (!in.failed()) std::memcpy(out->uuid.data(), uuid.data(), uuid.size());
  out->epoch = in.take<uint64_t>();
  const auto name_bytes = in.take<uint16_t>();
  if (in.failed() || name_bytes > kAgentNameBytesMax) return damaged(error, "is cut off, or its name too long");
  out->name = in.text(name_bytes);
  if (const Status status = decode_pools(in, &out->pools, error); status != Status::kOk) return status;
  if (const Status status = decode_transports(in, &out->transports, error); status != Status::kOk) return status;
  if (in.failed()) return damaged(error, "is cut off");
  // A later minor version may append sections, which an older reader leaves alone.
  if (in.left() != 0 && minor <= kProtocolMinor) return damaged(error, "has bytes after its end");
  return Status::kOk;
}

}  // namespace millrace::kv
