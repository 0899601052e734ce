// A reader of msgpack (R4): one value after the other, in place. It allocates nothing, does not recurse into what is
// nested, and reads nothing outside its bytes, whatever they are. Its functions are false when they cannot read, and then
// the reader is of no more use. Format: spec.md of msgpack/msgpack.
#pragma once

#include <cstdint>
#include <string_view>

namespace millrace {

enum class MsgpackKind : uint8_t { kNil, kBoolean, kInteger, kReal, kText, kBinary, kList, kMap, kExtension };

struct MsgpackValue {
  MsgpackKind kind;
  // Of an integer below 0, of which `bits` is the two's complement.
  bool negative;
  // Bytes of text and binaries, which begin at `at`; items of a list, pairs of a map: they are the next values.
  uint32_t size;
  uint32_t at;
  uint64_t bits;
};

class MsgpackReader {
 public:
  MsgpackReader(const uint8_t* bytes, uint32_t length) : bytes_(bytes), length_(length) {}

  // Reads a value; of a list or a map only its header. False when the bytes end inside it, when a list or map has more
  // values than there are bytes left, or when no value begins with such a byte.
  bool next(MsgpackValue* value);
  // `next`, false also when the value is of another kind.
  bool next_of(MsgpackKind kind, MsgpackValue* value) { return next(value) && value->kind == kind; }
  // Reads text, or passes over a nil, which is text without data.
  bool next_text(std::string_view* text);
  // Reads the key of a map's next pair; one that is no text is passed over and text without data.
  bool next_key(std::string_view* key);
  // Reads an integer in [0, 2^32), and no other value.
  bool next_word(uint32_t* word);
  // Reads so many of them.
  bool next_words(uint32_t* words, uint32_t count);
  // Passes over so many whole values.
  bool skip(uint64_t values);
  // Passes over a nil, if that is next.
  bool skip_nil() {
    const bool nil = at_ != length_ && bytes_[at_] == 0xc0;
    at_ += nil ? 1 : 0;
    return nil;
  }

  // Whether a function was false because the bytes ended; else there was a value that must not be there.
  bool truncated() const { return truncated_; }
  bool at_end() const { return at_ == length_; }
  uint32_t at() const { return at_; }
  // Goes to where a value began or ended before.
  void go_to(uint32_t at) { at_ = at; }
  const uint8_t* bytes(uint32_t at) const { return bytes_ + at; }
  std::string_view text(const MsgpackValue& value) const {
    return {reinterpret_cast<const char*>(bytes_ + value.at), value.size};
  }

 private:
  bool take(uint32_t bytes, uint64_t* number);
  bool fixed(uint8_t first, MsgpackValue* value);
  bool sized(MsgpackValue* value, MsgpackKind kind, uint32_t size_bytes);
  bool scalar(MsgpackValue* value, MsgpackKind kind, uint32_t bytes);
  bool body(MsgpackValue* value, uint32_t extra);
  bool cut() {
    truncated_ = true;
    return false;
  }

  const uint8_t* bytes_;
  uint32_t length_;
  uint32_t at_ = 0;
  bool truncated_ = false;
};

}  // namespace millrace
