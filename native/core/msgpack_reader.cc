// Reading msgpack: see msgpack_reader.h.
#include "msgpack_reader.h"

#include <cstring>

namespace millrace {

// Reads a big-endian number of 1, 2, 4 or 8 bytes.
bool MsgpackReader::take(uint32_t bytes, uint64_t* number) {
  if (bytes > length_ - at_) return cut();
  uint64_t read = 0;
  for (uint32_t i = 0; i < bytes; i++) read = read << 8 | bytes_[at_ + i];
  at_ += bytes;
  *number = read;
  return true;
}

// Checks that what a value says it has can be there, and passes over it unless it is made of values.
bool MsgpackReader::body(MsgpackValue* value, uint32_t extra) {
  const uint32_t left = length_ - at_;
  if (value->size > left) return cut();
  value->at = at_;
  if (value->kind == MsgpackKind::kList) return true;
  if (value->kind == MsgpackKind::kMap) return value->size <= left / 2 || cut();
  if (extra > left - value->size) return cut();
  at_ += value->size + extra;
  return true;
}

bool MsgpackReader::sized(MsgpackValue* value, MsgpackKind kind, uint32_t size_bytes) {
  uint64_t size = 0;
  if (!take(size_bytes, &size)) return false;
  value->kind = kind;
  value->size = static_cast<uint32_t>(size);
  return body(value, kind == MsgpackKind::kExtension ? 1 : 0);
}

bool MsgpackReader::scalar(MsgpackValue* value, MsgpackKind kind, uint32_t bytes) {
  value->kind = kind;
  return take(bytes, &value->bits);
}

// Values whose first byte says their size or what they are.
bool MsgpackReader::fixed(uint8_t first, MsgpackValue* value) {
  if (first <= 0x7f || first >= 0xe0) {
    value->kind = MsgpackKind::kInteger;
    value->negative = first >= 0xe0;
    value->bits = value->negative ? first - uint64_t{0x100} : first;
    return true;
  }
  value->kind = first <= 0x8f   ? MsgpackKind::kMap
                : first <= 0x9f ? MsgpackKind::kList
                                : MsgpackKind::kText;
  value->size = first <= 0x9f ? first & 0x0f : first & 0x1f;
  return body(value, 0);
}

bool MsgpackReader::next(MsgpackValue* value) {
  if (at_ == length_) return cut();
  const uint8_t first = bytes_[at_++];
  value->negative = false;
  if (first <= 0xbf || first >= 0xe0) return fixed(first, value);
  switch (first) {
    case 0xc0:
      value->kind = MsgpackKind::kNil;
      return true;
    case 0xc2:
    case 0xc3:
      value->kind = MsgpackKind::kBoolean;
      return true;
    case 0xc4:
    case 0xc5:
    case 0xc6:
      return sized(value, MsgpackKind::kBinary, 1u << (first - 0xc4));
    case 0xc7:
    case 0xc8:
    case 0xc9:
      return sized(value, MsgpackKind::kExtension, 1u << (first - 0xc7));
    case 0xca:
    case 0xcb:
      return scalar(value, MsgpackKind::kReal, 4u << (first - 0xca));
    case 0xcc:
    case 0xcd:
    case 0xce:
    case 0xcf:
      return scalar(value, MsgpackKind::kInteger, 1u << (first - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3: {
      const uint32_t bytes = 1u << (first - 0xd0);
      if (!scalar(value, MsgpackKind::kInteger, bytes)) return false;
      value->negative = (value->bits >> (bytes * 8 - 1) & 1) != 0;
      // All bits above those that were read.
      if (value->negative && bytes < 8) value->bits |= ~uint64_t{0} << bytes * 8;
      return true;
    }
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
      value->kind = MsgpackKind::kExtension;
      value->size = 1u << (first - 0xd4);
      return body(value, 1);
    case 0xd9:
    case 0xda:
    case 0xdb:
      return sized(value, MsgpackKind::kText, 1u << (first - 0xd9));
    case 0xdc:
    case 0xdd:
      return sized(value, MsgpackKind::kList, 2u << (first - 0xdc));
    case 0xde:
    case 0xdf:
      return sized(value, MsgpackKind::kMap, 2u << (first - 0xde));
    default:
      return false;
  }
}

bool MsgpackReader::skip(uint64_t values) {
  MsgpackValue value;
  // Each value read adds at most 2^33 to come, and there are fewer than 2^31 bytes: no sum can overflow.
  for (uint64_t left = values; left > 0; left--) {
    if (!next(&value)) return false;
    if (value.kind == MsgpackKind::kList) left += value.size;
    if (value.kind == MsgpackKind::kMap) left += uint64_t{value.size} * 2;
    if (left - 1 > length_ - at_) return cut();
  }
  return true;
}

bool MsgpackReader::next_word(uint32_t* word) {
  MsgpackValue value;
  if (!next_of(MsgpackKind::kInteger, &value) || value.bits > 0xffffffff) return false;
  *word = static_cast<uint32_t>(value.bits);
  return true;
}

// Most of a batch are ids. Those of 1, 2 or 4 bytes behind their first one, which comes in no order that a processor could
// foresee, are read without a branch on it.
bool MsgpackReader::next_words(uint32_t* words, uint32_t count) {
  constexpr uint8_t kFirst = 0xcc;
  constexpr uint32_t kWidest = 1 + sizeof(uint32_t);
  // Not the member, which `words` might be for all that the compiler knows.
  uint32_t at = at_;
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t* bytes = bytes_ + at;
    if (length_ - at < kWidest || static_cast<uint8_t>(bytes[0] - kFirst) > 2) {
      at_ = at;
      if (!next_word(words + i)) return false;
      at = at_;
      continue;
    }
    const uint32_t size = 1u << (bytes[0] & 3);
    uint32_t big_endian;
    std::memcpy(&big_endian, bytes + 1, sizeof big_endian);
    words[i] = __builtin_bswap32(big_endian) >> (32 - 8 * size);
    at += 1 + size;
  }
  at_ = at;
  return true;
}

bool MsgpackReader::next_text(std::string_view* text) {
  *text = {};
  MsgpackValue value;
  if (skip_nil()) return true;
  if (!next_of(MsgpackKind::kText, &value)) return false;
  *text = this->text(value);
  return true;
}

bool MsgpackReader::next_key(std::string_view* key) {
  const uint32_t start = at_;
  *key = {};
  MsgpackValue value;
  if (!next(&value)) return false;
  if (value.kind == MsgpackKind::kText) {
    *key = text(value);
    return true;
  }
  at_ = start;
  return skip(1);
}

}  // namespace millrace
