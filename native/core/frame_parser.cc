// The JSON side of the frame scanner: see frame_parser.h. Function for function the twin of src/engines/frame-parser.ts.
#include "frame_parser.h"

#include <cstring>

#include "millrace/frame_descriptor.h"

namespace millrace {
namespace {

constexpr int32_t kDepthMax = 64;
constexpr int32_t kChoiceFlags = kFrameFlagSeveralChoices | kFrameFlagNoChoices;

bool is_digit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

bool is_number_part(uint8_t byte) {
  return is_digit(byte) || byte == '-' || byte == '+' || byte == '.' || byte == 'e' || byte == 'E';
}

}  // namespace

bool FrameParser::parse(int32_t from, int32_t to, int32_t* row) {
  row_ = row;
  at_ = from;
  end_ = to;
  ids_base_ = ids_used_;
  clear_frame(0);
  skip_space();
  bool whole = object(Scope::kTop);
  if (whole) {
    skip_space();
    whole = at_ == end_;
  }
  if (!whole) {
    clear_frame(kFrameFlagMalformed);
    return false;
  }
  if (row[kFrameUsageStart] >= 0) row[kFrameFlags] |= kFrameFlagUsage;
  if (row[kFrameErrorStart] >= 0) row[kFrameFlags] |= kFrameFlagError;
  if (row[kFrameFinishStart] >= 0) row[kFrameFlags] |= kFrameFlagFinish;
  return true;
}

bool FrameParser::object(Scope scope) {
  if (!eat('{')) return false;
  skip_space();
  if (eat('}')) return true;
  for (;;) {
    const int32_t key = at_ + 1;
    if (!at('"') || !skip_string()) return false;
    const int32_t key_end = at_ - 1;
    skip_space();
    if (!eat(':')) return false;
    skip_space();
    if (!member(scope, key, key_end)) return false;
    skip_space();
    if (!eat(',')) return eat('}');
    skip_space();
  }
}

bool FrameParser::member(Scope scope, int32_t key, int32_t key_end) {
  switch (scope) {
    case Scope::kTop:
      if (key_is(key, key_end, "choices", 7)) return choices();
      if (key_is(key, key_end, "usage", 5)) return usage(key - 1);
      if (key_is(key, key_end, "error", 5)) return range_member(kFrameErrorStart, 2);
      if (key_is(key, key_end, "prompt_token_ids", 16)) return whole_member(key - 1, kFramePromptIdsStart, 2);
      break;
    case Scope::kChoice:
      if (key_is(key, key_end, "index", 5)) return choice_index();
      if (key_is(key, key_end, "delta", 5)) return delta();
      if (key_is(key, key_end, "text", 4)) return range_member(kFrameTextStart, 4);
      if (key_is(key, key_end, "token_ids", 9)) return token_ids(key - 1);
      if (key_is(key, key_end, "finish_reason", 13)) return range_member(kFrameFinishStart, 4);
      if (key_is(key, key_end, "logprobs", 8)) return range_member(kFrameLogprobsStart, 4);
      if (key_is(key, key_end, "prompt_token_ids", 16)) return whole_member(key - 1, kFrameChoicePromptIdsStart, 4);
      break;
    case Scope::kDelta:
      if (key_is(key, key_end, "content", 7)) return range_member(kFrameTextStart, 5);
      break;
  }
  return skip_value(static_cast<int32_t>(scope) + 1);
}

bool FrameParser::choices() {
  clear_choice();
  if (at('n')) return skip_literal("null", 4);
  if (!eat('[')) return false;
  skip_space();
  if (eat(']')) {
    row_[kFrameFlags] |= kFrameFlagNoChoices;
    return true;
  }
  if (!object(Scope::kChoice)) return false;
  skip_space();
  while (eat(',')) {
    row_[kFrameFlags] |= kFrameFlagSeveralChoices;
    skip_space();
    if (!skip_value(3)) return false;
    skip_space();
  }
  return eat(']');
}

bool FrameParser::choice_index() {
  row_[kFrameChoice] = -1;
  if (at('n')) return skip_literal("null", 4);
  uint32_t index = 0;
  if (!number(INT32_MAX, &index)) return false;
  row_[kFrameChoice] = static_cast<int32_t>(index);
  return true;
}

bool FrameParser::usage(int32_t key) {
  if (!range_member(kFrameUsageStart, 2)) return false;
  row_[kFrameUsageKey] = row_[kFrameUsageStart] < 0 ? -1 : key;
  return true;
}

bool FrameParser::token_ids(int32_t key) {
  clear_ids();
  if (at('n')) return skip_literal("null", 4);
  const int32_t start = at_;
  if (!eat('[')) return false;
  skip_space();
  if (!eat(']')) {
    for (;;) {
      uint32_t id = 0;
      if (!number(UINT32_MAX, &id)) return false;
      if (ids_used_ < kFrameIdsMax) ids_[ids_used_++] = id;
      else overflowed_ = true;
      skip_space();
      if (eat(']')) break;
      if (!eat(',')) return false;
      skip_space();
    }
  }
  row_[kFrameTokenIdsKey] = key;
  row_[kFrameTokenIdsStart] = start;
  row_[kFrameTokenIdsEnd] = at_;
  row_[kFrameIdsFirst] = static_cast<int32_t>(ids_base_);
  row_[kFrameIdsCount] = static_cast<int32_t>(ids_used_ - ids_base_);
  return true;
}

bool FrameParser::delta() {
  clear_range(kFrameTextStart);
  return at('{') ? object(Scope::kDelta) : skip_value(4);
}

bool FrameParser::range_member(uint32_t word, int32_t depth) {
  const int32_t start = at_;
  if (!skip_value(depth)) return false;
  if (bytes_[start] == 'n') {
    clear_range(word);
  } else {
    row_[word] = start;
    row_[word + 1] = at_;
  }
  return true;
}

bool FrameParser::whole_member(int32_t key, uint32_t word, int32_t depth) {
  if (!range_member(word, depth)) return false;
  if (row_[word] >= 0) row_[word] = key;
  return true;
}

bool FrameParser::skip_value(int32_t depth) {
  if (at('"')) return skip_string();
  if (at('{') || at('[')) return skip_composite(depth);
  return skip_scalar();
}

bool FrameParser::skip_composite(int32_t depth) {
  uint8_t open[kDepthMax];
  int32_t level = depth - 1;
  while (at_ < end_) {
    const uint8_t byte = bytes_[at_];
    if (byte == '"') {
      if (!skip_string()) return false;
      continue;
    }
    at_++;
    if (byte == '{' || byte == '[') {
      if (level == kDepthMax) return false;
      open[level++] = byte;
    } else if (byte == '}' || byte == ']') {
      // In ASCII a closing bracket is its opening one plus 2.
      if (open[--level] != byte - 2) return false;
      if (level < depth) return true;
    }
  }
  return false;
}

bool FrameParser::skip_string() {
  int32_t at = at_ + 1;
  while (at < end_) {
    const uint8_t byte = bytes_[at];
    if (byte == '"') {
      at_ = at + 1;
      return true;
    }
    at += byte == '\\' ? 2 : 1;
  }
  return false;
}

bool FrameParser::skip_scalar() {
  if (at('n')) return skip_literal("null", 4);
  if (at('t')) return skip_literal("true", 4);
  if (at('f')) return skip_literal("false", 5);
  const int32_t start = at_;
  while (at_ < end_ && is_number_part(bytes_[at_])) at_++;
  return at_ > start;
}

bool FrameParser::skip_literal(const char* literal, int32_t length) {
  if (end_ - at_ < length || std::memcmp(bytes_ + at_, literal, static_cast<size_t>(length)) != 0) return false;
  at_ += length;
  return true;
}

bool FrameParser::number(uint32_t max, uint32_t* out) {
  constexpr int32_t kDigitsMax = 10;
  const int32_t start = at_;
  uint64_t value = 0;
  while (at_ < end_ && is_digit(bytes_[at_])) {
    if (at_ - start == kDigitsMax) return false;
    value = value * 10 + (bytes_[at_++] - '0');
  }
  *out = static_cast<uint32_t>(value);
  return at_ > start && value <= max;
}

bool FrameParser::key_is(int32_t key, int32_t key_end, const char* name, int32_t length) const {
  return key_end - key == length && std::memcmp(bytes_ + key, name, static_cast<size_t>(length)) == 0;
}

bool FrameParser::eat(uint8_t byte) {
  if (!at(byte)) return false;
  at_++;
  return true;
}

// A frame's data is one line, so of JSON's white space only these two can be in it.
void FrameParser::skip_space() {
  while (at(' ') || at('\t')) at_++;
}

void FrameParser::clear_frame(int32_t flags) {
  clear_choice();
  clear_range(kFrameUsageStart);
  clear_range(kFrameErrorStart);
  clear_range(kFramePromptIdsStart);
  row_[kFrameUsageKey] = -1;
  row_[kFrameFlags] = flags;
}

void FrameParser::clear_choice() {
  row_[kFrameFlags] &= ~kChoiceFlags;
  row_[kFrameChoice] = -1;
  clear_range(kFrameFinishStart);
  clear_range(kFrameTextStart);
  clear_range(kFrameLogprobsStart);
  clear_range(kFrameChoicePromptIdsStart);
  clear_ids();
}

void FrameParser::clear_ids() {
  row_[kFrameIdsFirst] = -1;
  row_[kFrameIdsCount] = 0;
  row_[kFrameTokenIdsKey] = -1;
  clear_range(kFrameTokenIdsStart);
  drop_ids();
  overflowed_ = false;
}

void FrameParser::clear_range(uint32_t word) {
  row_[word] = -1;
  row_[word + 1] = -1;
}

}  // namespace millrace
