// Decoding KV event batches: see event_decode.h.
#include "event_decode.h"

#include <algorithm>
#include <iterator>

#include "event_reader.h"

namespace millrace {
namespace {

// So that every range of text fits the words of a row.
constexpr size_t kPayloadMax = size_t{1} << 30;

// Words in which stores that are joined are the same.
constexpr uint32_t kEqualWhenJoined[] = {kEventRowTier,  kEventRowGroupKind, kEventRowGroup,
                                         kEventRowBlockSize, kEventRowHasAdapterId};

class BatchDecoder {
 public:
  BatchDecoder(const EventTables& tables, const uint8_t* bytes, uint32_t length)
      : tables_(tables), reader_(bytes, length), events_(tables, &reader_) {}

  int32_t decode() {
    if (read_batch() && reader_.at_end()) return static_cast<int32_t>(rows_);
    if (too_many_rows_ || events_.oversized()) return kDecodeFaultOversized;
    return reader_.truncated() ? kDecodeFaultTruncated : kDecodeFaultMalformed;
  }

 private:
  bool read_batch();
  bool read_events();
  bool continues(const Event& event) const;
  bool append(const Event& event);

  EventTables tables_;
  MsgpackReader reader_;
  EventReader events_;
  bool too_many_rows_ = false;
  uint32_t rows_ = 0;
  uint32_t blocks_ = 0;
  uint32_t tokens_ = 0;
  uint32_t media_ = 0;
};

bool BatchDecoder::read_batch() {
  MsgpackValue batch;
  if (!reader_.next(&batch)) return false;
  // The time, the events, and what is not known here.
  if (batch.kind == MsgpackKind::kList) {
    return batch.size >= 2 && reader_.skip(1) && read_events() && reader_.skip(batch.size - 2);
  }
  if (batch.kind != MsgpackKind::kMap) return false;
  bool found = false;
  for (uint32_t i = 0; i < batch.size; i++) {
    std::string_view key;
    if (!reader_.next_key(&key)) return false;
    if (!(key == "events" ? read_events() : reader_.skip(1))) return false;
    found = found || key == "events";
  }
  return found;
}

bool BatchDecoder::read_events() {
  rows_ = blocks_ = tokens_ = media_ = 0;
  MsgpackValue events;
  if (!reader_.next_of(MsgpackKind::kList, &events)) return false;
  for (uint32_t i = 0; i < events.size; i++) {
    Event event;
    if (!events_.read(blocks_, tokens_, media_, &event) || !append(event)) return false;
    blocks_ += static_cast<uint32_t>(event.row[kEventRowBlocks]);
    tokens_ += static_cast<uint32_t>(event.row[kEventRowTokens]);
    media_ += static_cast<uint32_t>(event.row[kEventRowMedia]);
  }
  return true;
}

// Whether a store goes on where the one before it ended, so that one row can say both. Only whole ones are joined: what is
// wrong with an event must not spoil its neighbour.
bool BatchDecoder::continues(const Event& event) const {
  if (rows_ == 0) return false;
  const int32_t* last = tables_.rows + size_t{rows_ - 1} * kEventRowWords;
  const int32_t* row = event.row;
  for (const uint32_t word : kEqualWhenJoined) {
    if (last[word] != row[word]) return false;
  }
  for (const int32_t* each : {last, row}) {
    const int64_t ids = int64_t{each[kEventRowBlocks]} * each[kEventRowBlockSize];
    if (each[kEventRowKind] != kEventKindStore || ids == 0 || each[kEventRowTokens] != ids) return false;
    if ((each[kEventRowIsBigram] | each[kEventRowSaltBytes] | each[kEventRowMedia]) != 0) return false;
  }
  const uint32_t* end = tables_.hashes + size_t{blocks_ - 1} * kEventHashWords;
  return row[kEventRowHasParent] == 1 && std::equal(end, end + kEventHashWords, event.parent) &&
         events_.adapter_of(last) == events_.adapter_of(row);
}

bool BatchDecoder::append(const Event& event) {
  if (continues(event)) {
    int32_t* last = tables_.rows + size_t{rows_ - 1} * kEventRowWords;
    last[kEventRowBlocks] += event.row[kEventRowBlocks];
    last[kEventRowTokens] += event.row[kEventRowTokens];
    return true;
  }
  too_many_rows_ = rows_ == kEventRowsMax;
  if (too_many_rows_) return false;
  std::copy(std::begin(event.row), std::end(event.row), tables_.rows + size_t{rows_} * kEventRowWords);
  std::copy(std::begin(event.parent), std::end(event.parent), tables_.parents + size_t{rows_} * kEventHashWords);
  rows_++;
  return true;
}

}  // namespace

int32_t decode_events(const EventTables& tables, const uint8_t* bytes, size_t length) {
  if (length > kPayloadMax) return kDecodeFaultOversized;
  return BatchDecoder(tables, bytes, static_cast<uint32_t>(length)).decode();
}

}  // namespace millrace
