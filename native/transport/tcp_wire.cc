#include "tcp_wire.h"

#include <cstring>

#include "crc32c.h"
#include "words.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kAddressMagic = 0x31'41'54'4d;  // "MTA1"
constexpr uint32_t kHostBytesMax = 64;
constexpr uint32_t kRequestFixedBytes = 44;

Status damaged(std::string* error, const std::string& what) {
  *error = what;
  return Status::kInvalid;
}

template <size_t size>
void put_bytes(std::vector<uint8_t>* out, const std::array<uint8_t, size>& bytes) {
  out->insert(out->end(), bytes.begin(), bytes.end());
}

TcpUuid take_uuid(WordReader& in) {
  TcpUuid uuid{};
  const std::span<const uint8_t> bytes = in.bytes(uuid.size());
  if (!bytes.empty()) std::memcpy(uuid.data(), bytes.data(), uuid.size());
  return uuid;
}

void put_text(std::vector<uint8_t>* out, const std::string& text) {
  const size_t size = std::min<size_t>(text.size(), kTcpTextMax);
  put<uint16_t>(out, static_cast<uint16_t>(size));
  out->insert(out->end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(size));
}

void put_pools(std::vector<uint8_t>* out, const std::vector<TcpAddress::PoolHash>& pools) {
  put<uint16_t>(out, static_cast<uint16_t>(pools.size()));
  for (const TcpAddress::PoolHash& pool : pools) {
    put<uint32_t>(out, pool.pool);
    put<uint64_t>(out, pool.hash);
  }
}

bool take_pools(WordReader& in, std::vector<TcpAddress::PoolHash>* out) {
  const auto count = in.take<uint16_t>();
  if (in.failed() || count > kTcpPoolsMax) return false;
  for (uint32_t i = 0; i < count; i++) {
    const auto pool = in.take<uint32_t>();
    const auto hash = in.take<uint64_t>();
    out->push_back({pool, hash});
  }
  return !in.failed();
}

// The least and the most that a payload may have.
struct Limits {
  uint32_t least, most;
};

bool limits_of(TcpKind kind, Limits* out) {
  switch (kind) {
    // A newer version may say more in these two.
    case TcpKind::kHello: *out = {6, 16 * 1024}; return true;
    case TcpKind::kReply: *out = {8, 16 * 1024}; return true;
    case TcpKind::kLayout: *out = {4, kTcpLayoutBytesMax}; return true;
    case TcpKind::kRead:
    case TcpKind::kWrite: *out = {kRequestFixedBytes, kRequestFixedBytes + kTcpPartBlocksMax * 12}; return true;
    case TcpKind::kData: *out = {1, kTcpDataBytesMax}; return true;
    case TcpKind::kDone: *out = {6, 6 + kTcpTextMax}; return true;
    case TcpKind::kNotify: *out = {0, kNotificationBytesMax}; return true;
    case TcpKind::kGrant:
    case TcpKind::kCancel:
    case TcpKind::kHeartbeat: *out = {0, 0}; return true;
  }
  return false;
}

template <class Word>
void store(uint8_t* out, Word word) {
  std::memcpy(out, &word, sizeof(word));
}

template <class Word>
Word load(const uint8_t* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

}  // namespace

void TcpHeader::encode(uint8_t* out) const {
  store<uint32_t>(out, kTcpMagic);
  out[4] = static_cast<uint8_t>(kind);
  out[5] = flags;
  store<uint16_t>(out + 6, 0);
  store(out + 8, op);
  store(out + 16, part);
  store(out + 20, length);
  store(out + 24, payload_crc);
  store(out + 28, crc32c(0, out, 28));
}

Status TcpHeader::decode(const uint8_t* bytes, TcpHeader* out, std::string* error) {
  if (load<uint32_t>(bytes) != kTcpMagic) return damaged(error, "magic is not that of a frame");
  if (load<uint32_t>(bytes + 28) != crc32c(0, bytes, 28)) return damaged(error, "header crc differs");
  out->kind = static_cast<TcpKind>(bytes[4]);
  out->flags = bytes[5];
  out->op = load<uint64_t>(bytes + 8);
  out->part = load<uint32_t>(bytes + 16);
  out->length = load<uint32_t>(bytes + 20);
  out->payload_crc = load<uint32_t>(bytes + 24);
  Limits limits;
  if (!limits_of(out->kind, &limits)) return damaged(error, "kind must be from 1 to 11; got " + std::to_string(bytes[4]));
  if (load<uint16_t>(bytes + 6) != 0 || (out->flags & ~kTcpChecked) != 0 ||
      (out->flags != 0 && out->kind != TcpKind::kData))
    return damaged(error, "flags must be 0, or 1 of data; got " + std::to_string(out->flags));
  if (out->length < limits.least || out->length > limits.most) {
    return damaged(error, "length of a frame of kind " + std::to_string(bytes[4]) + " must be from " +
                              std::to_string(limits.least) + " to " + std::to_string(limits.most) + "; got " +
                              std::to_string(out->length));
  }
  return Status::kOk;
}

void TcpAddress::encode(std::vector<uint8_t>* out) const {
  put<uint32_t>(out, kAddressMagic);
  put_bytes(out, uuid);
  put<uint64_t>(out, epoch);
  put_bytes(out, nonce);
  put<uint16_t>(out, port);
  put<uint16_t>(out, static_cast<uint16_t>(hosts.size()));
  for (const std::string& host : hosts) {
    put<uint8_t>(out, static_cast<uint8_t>(host.size()));
    out->insert(out->end(), host.begin(), host.end());
  }
  put_pools(out, pools);
}

Status TcpAddress::decode(std::span<const uint8_t> bytes, TcpAddress* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  *out = {};
  if (in.take<uint32_t>() != kAddressMagic) return damaged(error, "an address of a version that is not known here");
  out->uuid = take_uuid(in);
  out->epoch = in.take<uint64_t>();
  out->nonce = take_uuid(in);
  out->port = in.take<uint16_t>();
  const auto hosts = in.take<uint16_t>();
  if (in.failed() || out->port == 0 || hosts < 1 || hosts > kTcpHostsMax)
    return damaged(error, "an address needs a port and from 1 to " + std::to_string(kTcpHostsMax) + " hosts");
  for (uint32_t i = 0; i < hosts; i++) {
    const auto size = in.take<uint8_t>();
    if (in.failed() || size < 1 || size > kHostBytesMax) return damaged(error, "a host of an address is too long or cut off");
    out->hosts.push_back(in.text(size));
  }
  if (!take_pools(in, &out->pools) || in.left() != 0) return damaged(error, "the pools of an address are cut off");
  return Status::kOk;
}

std::vector<uint8_t> TcpHello::encode() const {
  std::vector<uint8_t> out;
  put(&out, major);
  put(&out, minor);
  put(&out, major_min);
  put_bytes(&out, uuid);
  put(&out, epoch);
  put_bytes(&out, nonce);
  put(&out, capabilities);
  put_pools(&out, pools);
  return out;
}

Status TcpHello::decode(std::span<const uint8_t> bytes, TcpHello* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  *out = {};
  out->major = in.take<uint16_t>();
  out->minor = in.take<uint16_t>();
  out->major_min = in.take<uint16_t>();
  // What follows is of a version that may not be ours: its verdict comes first.
  if (in.failed()) return damaged(error, "hello is cut off");
  if (std::string text; !tcp_versions_fit(*out, &text)) return Status::kOk;
  out->uuid = take_uuid(in);
  out->epoch = in.take<uint64_t>();
  out->nonce = take_uuid(in);
  out->capabilities = in.take<uint64_t>();
  if (!take_pools(in, &out->pools)) return damaged(error, "hello is cut off, or its pools are too many");
  if (in.left() != 0 && out->minor <= kTcpMinor) return damaged(error, "hello is longer than its version has it");
  return Status::kOk;
}

std::vector<uint8_t> TcpReply::encode() const {
  std::vector<uint8_t> out;
  put(&out, static_cast<uint8_t>(verdict));
  put<uint8_t>(&out, 0);
  put(&out, major);
  put(&out, minor);
  put(&out, major_min);
  put_text(&out, text);
  put_bytes(&out, uuid);
  put(&out, epoch);
  put(&out, capabilities);
  put(&out, parts);
  put(&out, window);
  return out;
}

Status TcpReply::decode(std::span<const uint8_t> bytes, TcpReply* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  *out = {};
  out->verdict = static_cast<TcpVerdict>(in.take<uint8_t>());
  in.take<uint8_t>();
  out->major = in.take<uint16_t>();
  out->minor = in.take<uint16_t>();
  out->major_min = in.take<uint16_t>();
  const auto size = in.take<uint16_t>();
  if (in.failed() || size > kTcpTextMax) return damaged(error, "reply is cut off, or its text too long");
  out->text = in.text(size);
  out->uuid = take_uuid(in);
  out->epoch = in.take<uint64_t>();
  out->capabilities = in.take<uint64_t>();
  out->parts = in.take<uint32_t>();
  out->window = in.take<uint64_t>();
  if (out->verdict != TcpVerdict::kAccept) return Status::kOk;
  if (in.failed() || (in.left() != 0 && out->minor <= kTcpMinor)) return damaged(error, "reply has not the length of its version");
  if (out->parts < 1 || out->parts > kTcpPartsMax) return damaged(error, "parts of a reply must be from 1 to 32");
  return Status::kOk;
}

void encode_request(uint32_t own_pool, uint64_t bytes, const Operation& operation, size_t first, size_t count,
                    std::vector<uint8_t>* out) {
  put(out, own_pool);
  put(out, operation.remote_pool);
  for (const uint32_t word : {operation.part.first_layer, operation.part.layers, operation.part.first_head, operation.part.heads})
    put(out, word);
  put<uint8_t>(out, static_cast<uint8_t>(operation.integrity));
  put<uint8_t>(out, operation.remote_generations.empty() ? 0 : 1);
  put<uint16_t>(out, 0);
  put(out, static_cast<uint32_t>(count));
  put(out, static_cast<uint32_t>(0));
  put(out, bytes);
  const auto put_list = [&](std::span<const uint32_t> list) {
    if (list.empty()) return;
    const auto* from = reinterpret_cast<const uint8_t*>(list.data() + first);
    out->insert(out->end(), from, from + count * sizeof(uint32_t));
  };
  put_list(operation.remote_blocks);
  put_list(operation.local_blocks);
  put_list(operation.remote_generations);
}

Status TcpRequest::decode(std::span<const uint8_t> bytes, TcpRequest* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  *out = {};
  out->own_pool = in.take<uint32_t>();
  out->peer_pool = in.take<uint32_t>();
  for (uint32_t* word : {&out->part.first_layer, &out->part.layers, &out->part.first_head, &out->part.heads})
    *word = in.take<uint32_t>();
  out->integrity = static_cast<Integrity>(in.take<uint8_t>());
  const auto has_generations = in.take<uint8_t>();
  const auto zero = in.take<uint16_t>();
  const auto count = in.take<uint32_t>();
  const auto zero_too = in.take<uint32_t>();
  out->bytes = in.take<uint64_t>();
  if (in.failed() || zero != 0 || zero_too != 0 || has_generations > 1 || out->integrity > Integrity::kFull)
    return damaged(error, "a request has fields that its version has not");
  if (count < 1 || count > kTcpPartBlocksMax)
    return damaged(error, "blocks of a request must be from 1 to " + std::to_string(kTcpPartBlocksMax) + "; got " + std::to_string(count));
  if (in.left() != size_t{count} * 4 * (2 + has_generations)) return damaged(error, "a request has not the length of its blocks");
  const auto take_list = [&](std::vector<uint32_t>* list) {
    const std::span<const uint8_t> from = in.bytes(size_t{count} * 4);
    list->resize(count);
    std::memcpy(list->data(), from.data(), from.size());
  };
  take_list(&out->peer_blocks);
  take_list(&out->own_blocks);
  if (has_generations == 1) take_list(&out->generations);
  return Status::kOk;
}

std::vector<uint8_t> TcpLayout::encode(uint32_t pool, const Layout& layout) {
  std::vector<uint8_t> out;
  put(&out, pool);
  layout.encode(&out);
  return out;
}

Status TcpLayout::decode(std::span<const uint8_t> bytes, TcpLayout* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  out->pool = in.take<uint32_t>();
  if (in.failed()) return damaged(error, "a layout is cut off");
  return Layout::decode(bytes.data() + sizeof(uint32_t), bytes.size() - sizeof(uint32_t), &out->layout, error);
}

std::vector<uint8_t> TcpDone::encode() const {
  std::vector<uint8_t> out;
  put(&out, static_cast<int32_t>(status));
  put_text(&out, text);
  return out;
}

Status TcpDone::decode(std::span<const uint8_t> bytes, TcpDone* out, std::string* error) {
  WordReader in(bytes.data(), bytes.size());
  const auto status = in.take<int32_t>();
  const auto size = in.take<uint16_t>();
  if (in.failed() || status > 0 || status < static_cast<int32_t>(Status::kClosed) || in.left() != size)
    return damaged(error, "the end of a request has no status, or not the length it says");
  out->status = static_cast<Status>(status);
  out->text = in.text(size);
  return Status::kOk;
}

bool tcp_versions_fit(const TcpHello& hello, std::string* text) {
  if (hello.major >= kTcpMajorMin && hello.major_min <= kTcpMajor && hello.major_min <= hello.major) return true;
  *text = "protocol version differs: " + std::to_string(hello.major_min) + " to " + std::to_string(hello.major) +
          " at the initiator, " + std::to_string(kTcpMajorMin) + " to " + std::to_string(kTcpMajor) + " at the responder";
  return false;
}

}  // namespace millrace::kv
