// How the flags of a chunk are read: shared by the writer's files. See prefix_index.h.
#pragma once

#include "prefix_index.h"

namespace millrace {

inline uint32_t lane_flags(const uint32_t* chunk, uint32_t lane) {
  uint32_t flags = 0;
  for (uint32_t word = 0; word < 3; word++) {
    const uint32_t bits = chunk[word] >> lane;
    flags |= ((bits & 1) | (bits >> 15 & 2)) << (word * 2);
  }
  return flags;
}

// The lanes of a chunk that hold the block in a tier or by prediction.
inline uint32_t held_lanes(const uint32_t* chunk) {
  const uint32_t both = chunk[0] | chunk[1];
  return (both | both >> 16) & 0xffff;
}

// Calls visit(slot, flags) for every holder of a block; visit does not change the block.
template <class Visit>
void IndexWriter::each_holder(uint32_t block, Visit visit) const {
  const uint32_t holders = view_.block(block)[kHolders];
  if (holders != 0 && (holders & kManyHolders) == 0) visit(holders & kIndexSlotMask, holders >> kIndexSlotBits);
  if ((holders & kManyHolders) == 0) return;
  for (uint32_t at = holders & ~kManyHolders; at != 0; at = view_.chunk(at)[3] & kChunkNextMask) {
    const uint32_t* chunk = view_.chunk(at);
    for (uint32_t lanes = held_lanes(chunk); lanes != 0; lanes &= lanes - 1) {
      const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
      visit((chunk[3] >> kChunkNextBits) * 16 + lane, lane_flags(chunk, lane));
    }
  }
}

}  // namespace millrace
