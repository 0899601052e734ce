// Little-endian words of the blobs that agents exchange: the reader trusts no length and never reads past its end, and what
// goes wrong once stays wrong, so that a parser may check once after several fields. Values; any thread.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace millrace::kv {

static_assert(std::endian::native == std::endian::little, "blobs are written as the machine has its words");

class WordReader {
 public:
  WordReader(const uint8_t* bytes, size_t size) : bytes_(bytes), size_(size) {}

  template <class Word>
  Word take() {
    Word word{};
    if (size_ - at_ < sizeof(Word)) {
      failed_ = true;
      return word;
    }
    std::memcpy(&word, bytes_ + at_, sizeof(Word));
    at_ += sizeof(Word);
    return word;
  }

  // The next `length` bytes where they lie; empty when there are not so many.
  std::span<const uint8_t> bytes(size_t length) {
    if (size_ - at_ < length) {
      failed_ = true;
      return {};
    }
    at_ += length;
    return {bytes_ + at_ - length, length};
  }

  std::string text(size_t length) {
    const std::span<const uint8_t> found = bytes(length);
    return {reinterpret_cast<const char*>(found.data()), found.size()};
  }

  size_t left() const { return size_ - at_; }
  bool failed() const { return failed_; }

 private:
  const uint8_t* bytes_;
  size_t size_;
  size_t at_ = 0;
  bool failed_ = false;
};

template <class Word>
void put(std::vector<uint8_t>* out, Word word) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&word);
  out->insert(out->end(), bytes, bytes + sizeof(Word));
}

}  // namespace millrace::kv
