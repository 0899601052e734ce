// Reads one KV event, in either form, into the tables of a batch: see event_decode.h.
#pragma once

#include <cstdint>
#include <string_view>

#include "event_decode.h"
#include "millrace/event_descriptor.h"
#include "msgpack_reader.h"

namespace millrace {

// One event as it is read: what will be its row, behind which the tables hold its hashes, ids and media.
struct Event {
  int32_t row[kEventRowWords] = {};
  uint32_t parent[kEventHashWords] = {};
  uint32_t extra_keys_at = 0;
  bool has_hashes = false;
  bool has_tokens = false;
  bool has_adapter_id = false;
};

enum class EventField : uint8_t;
struct EventTag;

class EventReader {
 public:
  EventReader(const EventTables& tables, MsgpackReader* reader) : tables_(tables), reader_(*reader) {}

  // Reads the next event. Its blocks, ids and media go to the first places that are free, which `event->row` names. False
  // when it cannot be read or is not whole, or when a table is full (`oversized`).
  bool read(uint32_t first_block, uint32_t first_token, uint32_t first_media, Event* event);
  bool oversized() const { return oversized_; }
  // The name of a row's adapter.
  std::string_view adapter_of(const int32_t* row) const;

 private:
  bool overflow() {
    oversized_ = true;
    return false;
  }

  bool read_tag(const MsgpackValue& header, const EventTag** tag);
  bool read_field(EventField field, Event* event);
  bool read_number(int32_t least, int32_t* word);
  bool read_medium(int32_t* tier);
  bool read_group_kind(int32_t* kind);
  bool read_hash(uint32_t* words);
  bool read_hashes(Event* event);
  bool read_tokens(Event* event);
  bool read_pairs(uint32_t count, uint32_t* out);
  bool read_extra_keys(Event* event);
  bool read_extra_key(uint32_t block, Event* event);
  bool add_media(uint32_t block, std::string_view text, Event* event);
  void note(std::string_view text, int32_t* at, int32_t* bytes) const;

  EventTables tables_;
  MsgpackReader& reader_;
  bool oversized_ = false;
};

}  // namespace millrace
