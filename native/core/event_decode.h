// The decoder of KV event batches (R4): the msgpack of vLLM and SGLang into the tables of
// src/router/events/event-tables.ts. Its TypeScript twin is src/router/events/decoder.ts; both give the same words for
// every input. Runs on the thread that owns the tables. Wire form: msgspec structs of vllm/distributed/kv_events.py.
//
// Batches and events may each be a list (by position) or a map (by name; the last of equal names counts). Names and
// trailing values that are not known are passed over. A store needs hashes, ids and block size, a removal its hashes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace {

// Tables of the sizes that event-tables.ts says.
struct EventTables {
  int32_t* rows;
  uint32_t* parents;
  uint32_t* hashes;
  uint32_t* tokens;
  uint32_t* media;
};

// Decodes a batch. Returns its rows, or one of kDecodeFault...; then the tables hold nothing of use.
int32_t decode_events(const EventTables& tables, const uint8_t* bytes, size_t length);

}  // namespace millrace
