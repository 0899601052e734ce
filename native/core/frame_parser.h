// Reads the JSON object of one frame and writes the ranges of the values that an adapter needs into its row. Used by
// frame_scan.cc only. Values that nobody asks for are skipped by bracket depth and strings, not validated.
#pragma once

#include <cstdint>

namespace millrace {

class FrameParser {
 public:
  FrameParser(const uint8_t* bytes, uint32_t* ids) : bytes_(bytes), ids_(ids) {}

  // Parses [from, to) into `row`, whose words 2 to 23 it owns; ids go to ids[ids_used()...]. False: not one complete
  // object, or a value of interest has a wrong type; the row then holds nothing but the flag `malformed`.
  bool parse(int32_t from, int32_t to, int32_t* row);

  // More ids than room; the row is complete but for them.
  bool overflowed() const { return overflowed_; }
  uint32_t ids_used() const { return ids_used_; }
  // Forgets the ids of the last frame.
  void drop_ids() { ids_used_ = ids_base_; }

 private:
  // The objects whose members are read one by one; the number is their nesting depth.
  enum class Scope : int32_t { kTop = 1, kChoice = 3, kDelta = 4 };

  bool object(Scope scope);
  bool member(Scope scope, int32_t key, int32_t key_end);
  bool choices();
  bool choice_index();
  bool usage(int32_t key);
  bool token_ids(int32_t key);
  bool delta();
  bool range_member(uint32_t word, int32_t depth);
  bool whole_member(int32_t key, uint32_t word, int32_t depth);
  bool skip_value(int32_t depth);
  bool skip_composite(int32_t depth);
  bool skip_string();
  bool skip_scalar();
  bool skip_literal(const char* literal, int32_t length);
  bool number(uint32_t max, uint32_t* out);
  bool key_is(int32_t key, int32_t key_end, const char* name, int32_t length) const;
  bool at(uint8_t byte) const { return at_ < end_ && bytes_[at_] == byte; }
  bool eat(uint8_t byte);
  void skip_space();
  void clear_frame(int32_t flags);
  void clear_choice();
  void clear_ids();
  void clear_range(uint32_t word);

  const uint8_t* bytes_;
  uint32_t* ids_;
  int32_t* row_ = nullptr;
  int32_t at_ = 0;
  int32_t end_ = 0;
  uint32_t ids_base_ = 0;
  uint32_t ids_used_ = 0;
  bool overflowed_ = false;
};

}  // namespace millrace
