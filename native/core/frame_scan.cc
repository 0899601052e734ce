// The event side of the frame scanner: see frame_scan.h. The twin of src/engines/frame-scanner.ts.
#include "frame_scan.h"

#include <algorithm>
#include <cstring>

#include "frame_parser.h"
#include "millrace/frame_descriptor.h"

namespace millrace {
namespace {

// Finds line ends in one pass over the buffer: each of the two searches remembers its last hit, so that bytes are
// looked at once even when every line is short.
class LineFinder {
 public:
  LineFinder(const uint8_t* bytes, int32_t from, int32_t to) : bytes_(bytes), to_(to), lf_(from - 1), cr_(from - 1) {}

  // The offset of the first '\n' or '\r' at or after `at`, or `to` when there is none.
  int32_t line_end(int32_t at) {
    if (lf_ < at) lf_ = find('\n', at);
    if (cr_ < at) cr_ = find('\r', at);
    return std::min(lf_, cr_);
  }

  // The start of the line after a line that ends at `end`.
  int32_t after(int32_t end) const {
    return bytes_[end] == '\r' && end + 1 < to_ && bytes_[end + 1] == '\n' ? end + 2 : end + 1;
  }

 private:
  int32_t find(int byte, int32_t at) const {
    if (at >= to_) return to_;
    const void* hit = std::memchr(bytes_ + at, byte, static_cast<size_t>(to_ - at));
    return hit == nullptr ? to_ : static_cast<int32_t>(static_cast<const uint8_t*>(hit) - bytes_);
  }

  const uint8_t* bytes_;
  int32_t to_;
  int32_t lf_;
  int32_t cr_;
};

struct Event {
  // The byte after the blank line; -1 while the event is not complete.
  int32_t end = -1;
  int32_t data_lines = 0;
  int32_t data = 0;
  int32_t data_end = 0;
};

void read_line(const uint8_t* bytes, int32_t line, int32_t end, Event* event) {
  if (end - line < 4 || std::memcmp(bytes + line, "data", 4) != 0) return;
  if (end - line > 4 && bytes[line + 4] != ':') return;
  event->data_lines++;
  event->data = std::min(line + 5, end);
  if (event->data < end && bytes[event->data] == ' ') event->data++;
  event->data_end = end;
}

Event read_event(const uint8_t* bytes, int32_t from, int32_t to, LineFinder* lines) {
  Event event;
  for (int32_t line = from;;) {
    const int32_t end = lines->line_end(line);
    if (end == to) return event;
    const int32_t next = lines->after(end);
    if (end == line) {
      event.end = next;
      return event;
    }
    read_line(bytes, line, end, &event);
    line = next;
  }
}

bool is_done(const uint8_t* bytes, const Event& event) {
  return event.data_lines == 1 && event.data_end - event.data == 6 && std::memcmp(bytes + event.data, "[DONE]", 6) == 0;
}

void write_plain_row(int32_t* row, int32_t flags) {
  std::fill(row + kFrameFlags, row + kFrameWords, -1);
  row[kFrameFlags] = flags;
  row[kFrameIdsCount] = 0;
}

// False: the frame's ids do not fit beside those of earlier frames, and the row does not count.
bool write_row(const uint8_t* bytes, const Event& event, bool first, FrameParser* parser, int32_t* row) {
  if (event.data_lines == 0) {
    write_plain_row(row, kFrameFlagComment);
  } else if (is_done(bytes, event)) {
    write_plain_row(row, kFrameFlagDone);
  } else if (event.data_lines > 1) {
    write_plain_row(row, kFrameFlagMalformed);
  } else if (parser->parse(event.data, event.data_end, row) && parser->overflowed()) {
    parser->drop_ids();
    if (!first) return false;
    row[kFrameIdsFirst] = -1;
    row[kFrameIdsCount] = 0;
    row[kFrameFlags] |= kFrameFlagIdsOverflow;
  }
  return true;
}

}  // namespace

void scan_frames(const uint8_t* bytes, int32_t from, int32_t to, int32_t* table, uint32_t* ids) {
  LineFinder lines(bytes, from, to);
  FrameParser parser(bytes, ids);
  uint32_t frames = 0;
  int32_t at = from;
  bool full = false;
  for (;;) {
    // A blank line between events, and the '\n' of a "\r\n" whose '\r' ended the last scan, belong to no event.
    while (at < to && (bytes[at] == '\n' || bytes[at] == '\r')) at++;
    if (at == to) break;
    full = frames == kFramesMax;
    if (full) break;
    const Event event = read_event(bytes, at, to, &lines);
    if (event.end < 0) break;
    int32_t* row = table + kScanHeaderWords + frames * kFrameWords;
    full = !write_row(bytes, event, frames == 0, &parser, row);
    if (full) break;
    row[kFrameStart] = at;
    row[kFrameEnd] = event.end;
    frames++;
    at = event.end;
  }
  table[kScanHeaderFrames] = static_cast<int32_t>(frames);
  table[kScanHeaderConsumed] = at - from;
  table[kScanHeaderIds] = static_cast<int32_t>(parser.ids_used());
  table[kScanHeaderFull] = full ? 1 : 0;
}

}  // namespace millrace
