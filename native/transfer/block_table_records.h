// The bytes of a block table: a header of two cache lines, one line per block, and the buckets of the hash chains. Shared by
// the files of BlockTable only.
#pragma once

#include "block_table.h"

namespace millrace::kv {

// The list that a block is in: none, or one of these, which share its pair of links.
enum : uint32_t { kInNone = 0, kInFree = 1, kInQuarantine = 2, kInLeaves = 3 };

struct BlockTable::Header {
  uint32_t magic, blocks;
  uint32_t free_head, free_tail, free_count;
  uint32_t quarantine_head, quarantine_tail, quarantine_count;
  uint32_t leaf_head, leaf_tail, leaf_count;
  uint32_t reserved_count, filling_count, ready_count, pinned_count;
  uint32_t timed_count;
  uint64_t evictions, refused;
};

struct BlockTable::Block {
  uint32_t state;
  uint32_t generation;
  uint32_t inflight;
  uint32_t pins;
  uint64_t hash;
  uint64_t pinned_until_ms;
  uint32_t crc;
  uint32_t tenant;
  uint32_t parent;
  uint32_t children;
  uint32_t next_in_bucket;
  uint32_t next;
  uint32_t previous;
  uint32_t list;
};

}  // namespace millrace::kv
