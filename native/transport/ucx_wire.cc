// Headers and payloads as bytes, and back, with every check. See ucx_wire.h.
#include "ucx_wire.h"

#include <cstring>

#include "crc32c.h"
#include "words.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kAddressMagic = 0x31'55'54'4d;  // "MTU1"
constexpr uint32_t kHelloBytesMax = 16 * 1024;

Status damaged(std::string* error, const std::string& what) {
  *error = what;
  return Status::kInvalid;
}

void put_bytes(std::vector<uint8_t>* out, std::span<const uint8_t> bytes) { out->insert(out->end(), bytes.begin(), bytes.end()); }

TcpUuid take_uuid(WordReader& in) {
  TcpUuid uuid{};
  const std::span<const uint8_t> bytes = in.bytes(uuid.size());
  if (!bytes.empty()) std::memcpy(uuid.data(), bytes.data(), uuid.size());
  return uuid;
}

// A list with its length before it.
bool take_list(WordReader& in, uint32_t most, std::vector<uint8_t>* out) {
  const auto size = in.take<uint32_t>();
  if (in.failed() || size > most) return false;
  const std::span<const uint8_t> bytes = in.bytes(size);
  out->assign(bytes.begin(), bytes.end());
  return !in.failed();
}

void put_list(std::vector<uint8_t>* out, std::span<const uint8_t> bytes) {
  put(out, static_cast<uint32_t>(bytes.size()));
  put_bytes(out, bytes);
}

}  // namespace

void UcxHeader::encode(uint8_t* out, std::span<const uint8_t> payload) const {
  std::vector<uint8_t> words;
  put(&words, kUcxMagic);
  put(&words, static_cast<uint8_t>(kind));
  put(&words, flags);
  put(&words, uint16_t{0});
  put(&words, key);
  put(&words, op);
  put(&words, frame);
  const bool is_checked = !is_data() || (flags & kUcxChecked) != 0;
  put(&words, is_checked ? crc32c(0, payload.data(), payload.size()) : 0u);
  put(&words, crc32c(0, words.data(), words.size()));
  put(&words, 0u);
  std::memcpy(out, words.data(), kUcxHeaderBytes);
}

Status UcxHeader::decode(std::span<const uint8_t> bytes, std::span<const uint8_t> payload, UcxHeader* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  const auto magic = in.take<uint32_t>();
  const auto kind = in.take<uint8_t>();
  out->kind = static_cast<UcxKind>(kind);
  out->flags = in.take<uint8_t>();
  const auto zero = in.take<uint16_t>();
  out->key = in.take<uint64_t>();
  out->op = in.take<uint64_t>();
  out->frame = in.take<uint32_t>();
  const auto payload_crc = in.take<uint32_t>();
  const auto header_crc = in.take<uint32_t>();
  const auto zero_too = in.take<uint32_t>();
  if (in.failed() || in.left() != 0 || magic != kUcxMagic) return damaged(error, "magic or length are not those of a header");
  if (header_crc != crc32c(0, bytes.data(), 32)) return damaged(error, "header crc differs");
  if (zero != 0 || zero_too != 0 || kind < 1 || kind > static_cast<uint8_t>(UcxKind::kWriteData) || out->flags > (kUcxChecked | kUcxDirect))
    return damaged(error, "kind must be from 1 to 14 and flags from 0 to 3; got " + std::to_string(kind) + " and " +
                              std::to_string(out->flags));
  if (out->is_data() && (out->flags & kUcxChecked) == 0) return Status::kOk;
  if (payload_crc == crc32c(0, payload.data(), payload.size())) return Status::kOk;
  *error = "payload crc differs";
  return Status::kCorrupt;
}

void UcxAddress::encode(std::vector<uint8_t>* out) const {
  const size_t begin = out->size();
  put(out, kAddressMagic);
  put_bytes(out, uuid);
  put(out, epoch);
  put_bytes(out, nonce);
  put_bytes(out, boot);
  put(out, pid_namespace);
  put(out, pid);
  put(out, start_time);
  put(out, static_cast<uint8_t>(has_shared_memory ? 1 : 0));
  put_list(out, worker);
  put(out, static_cast<uint32_t>(pools.size()));
  for (const PoolKey& pool : pools) {
    put(out, pool.pool);
    put(out, pool.hash);
    put(out, pool.address);
    put(out, pool.bytes);
    put_list(out, pool.rkey);
  }
  put(out, crc32c(0, out->data() + begin, out->size() - begin));
}

Status UcxAddress::decode(std::span<const uint8_t> bytes, UcxAddress* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  *out = {};
  if (in.take<uint32_t>() != kAddressMagic) return damaged(error, "an address of a version that is not known here");
  out->uuid = take_uuid(in);
  out->epoch = in.take<uint64_t>();
  out->nonce = take_uuid(in);
  out->boot = take_uuid(in);
  out->pid_namespace = in.take<uint64_t>();
  out->pid = in.take<uint32_t>();
  out->start_time = in.take<uint64_t>();
  out->has_shared_memory = in.take<uint8_t>() != 0;
  if (!take_list(in, kUcxAddressBytesMax, &out->worker) || out->worker.empty())
    return damaged(error, "a worker's address must have from 1 to " + std::to_string(kUcxAddressBytesMax) + " bytes");
  const auto count = in.take<uint32_t>();
  if (in.failed() || count > kTcpPoolsMax) return damaged(error, "pools of an address must be at most " + std::to_string(kTcpPoolsMax));
  for (uint32_t i = 0; i < count; i++) {
    PoolKey& pool = out->pools.emplace_back();
    pool.pool = in.take<uint32_t>();
    pool.hash = in.take<uint64_t>();
    pool.address = in.take<uint64_t>();
    pool.bytes = in.take<uint64_t>();
    if (!take_list(in, kUcxRkeyBytesMax, &pool.rkey)) return damaged(error, "a pool of an address is cut off");
  }
  const size_t covered = bytes.size() - in.left();
  const auto crc = in.take<uint32_t>();
  if (in.failed() || in.left() != 0) return damaged(error, "an address has not the length that it says");
  return crc == crc32c(0, bytes.data(), covered) ? Status::kOk : damaged(error, "the checksum of an address differs");
}

std::vector<uint8_t> UcxHello::encode() const {
  std::vector<uint8_t> out;
  put_list(&out, hello.encode());
  put(&out, key);
  address.encode(&out);
  return out;
}

Status UcxHello::decode(std::span<const uint8_t> bytes, UcxHello* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  std::vector<uint8_t> hello;
  if (!take_list(in, kHelloBytesMax, &hello)) return damaged(error, "hello is cut off");
  if (const Status status = TcpHello::decode(hello, &out->hello, error); status != Status::kOk) return status;
  out->key = in.take<uint64_t>();
  if (in.failed() || out->key == 0) return damaged(error, "hello has no key");
  if (const Status status = UcxAddress::decode(in.bytes(in.left()), &out->address, error); status != Status::kOk) return status;
  const bool is_one = out->address.uuid == out->hello.uuid && out->address.epoch == out->hello.epoch;
  return is_one ? Status::kOk : damaged(error, "hello names two agents");
}

std::vector<uint8_t> UcxWelcome::encode() const {
  std::vector<uint8_t> out;
  put(&out, key);
  put_bytes(&out, reply.encode());
  return out;
}

Status UcxWelcome::decode(std::span<const uint8_t> bytes, UcxWelcome* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  out->key = in.take<uint64_t>();
  if (in.failed()) return damaged(error, "welcome is cut off");
  return TcpReply::decode(in.bytes(in.left()), &out->reply, error);
}

std::vector<uint8_t> UcxEnd::encode() const {
  std::vector<uint8_t> out;
  put(&out, static_cast<int32_t>(status));
  put(&out, crc);
  return out;
}

Status UcxEnd::decode(std::span<const uint8_t> bytes, UcxEnd* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  const auto status = in.take<int32_t>();
  out->crc = in.take<uint32_t>();
  if (in.failed() || in.left() != 0 || status > 0 || status < static_cast<int32_t>(Status::kClosed))
    return damaged(error, "the end of a direct request has no status, or not its length");
  out->status = static_cast<Status>(status);
  return Status::kOk;
}

}  // namespace millrace::kv
