// Who holds a block of the prefix index, in which tier, and from where on down it is reachable. See prefix_index.h.
#include "prefix_index.h"
#include "prefix_index_visit.h"

namespace millrace {
namespace {

constexpr uint32_t kReachable[2] = {kIndexFlagReachable, kIndexFlagDeviceReachable};
constexpr uint32_t kHeld[2] = {kFlagResident, kIndexFlagDevice | kIndexFlagPredicted};

uint32_t unreached(uint32_t flags, uint32_t level) {
  return (flags & kHeld[level]) != 0 && (flags & kReachable[level]) == 0 ? 1 : 0;
}

bool is_empty(const uint32_t* chunk) { return (chunk[0] | chunk[1]) == 0; }

void write_lane(uint32_t* chunk, uint32_t lane, uint32_t flags) {
  for (uint32_t word = 0; word < 3; word++) {
    const uint32_t bits = (flags >> (word * 2) & 1) | (flags >> (word * 2 + 1) & 1) << 16;
    store_relaxed(chunk + word, (chunk[word] & ~(0x10001u << lane)) | bits << lane);
  }
}

}  // namespace

// Readers that probe a key of this block's stripe between the two calls, or across them, probe again.
void IndexWriter::begin_giving(uint32_t block) {
  uint32_t* stripe = view_.stripe(view_.bucket_of(key_of(block)));
  store_relaxed(stripe, *stripe + 1);
  std::atomic_thread_fence(std::memory_order_release);
}

void IndexWriter::end_giving(uint32_t block) {
  uint32_t* stripe = view_.stripe(view_.bucket_of(key_of(block)));
  store_release(stripe, *stripe + 1);
}

uint32_t IndexWriter::flags_of(uint32_t block, uint32_t slot) const {
  const uint32_t holders = view_.block(block)[kHolders];
  if ((holders & kManyHolders) == 0) return (holders & kIndexSlotMask) == slot ? holders >> kIndexSlotBits : 0;
  for (uint32_t at = holders & ~kManyHolders; at != 0; at = view_.chunk(at)[3] & kChunkNextMask) {
    const uint32_t* chunk = view_.chunk(at);
    if (chunk[3] >> kChunkNextBits == slot / 16) return lane_flags(chunk, slot % 16);
  }
  return 0;
}

void IndexWriter::count_change(uint32_t slot, uint32_t before, uint32_t after) {
  view_.slot_unreached[0][slot] += unreached(after, 0) - unreached(before, 0);
  view_.slot_unreached[1][slot] += unreached(after, 1) - unreached(before, 1);
  if (before == 0 && after != 0) {
    view_.slot_blocks[slot]++;
    state_->held++;
  }
  if (before != 0 && after == 0) {
    state_->held--;
    view_.slot_blocks[slot]--;
    settle(slot);
  }
}

uint32_t IndexWriter::new_chunk(uint32_t next, uint32_t group) {
  uint32_t chunk = state_->free_chunk;
  if (chunk != 0) {
    state_->free_chunk = view_.chunk(chunk)[3] & kChunkNextMask;
  } else if (state_->chunks_made < view_.chunks_max) {
    chunk = ++state_->chunks_made;
  } else {
    return 0;
  }
  uint32_t* words = view_.chunk(chunk);
  for (uint32_t word = 0; word < 3; word++) store_relaxed(words + word, 0);
  store_relaxed(words + 3, next | group << kChunkNextBits);
  return chunk;
}

void IndexWriter::give_chunk(uint32_t chunk) {
  store_relaxed(view_.chunk(chunk) + 3, state_->free_chunk);
  state_->free_chunk = chunk;
}

// Replaces the flags of a slot at a block, which were `before`. False, with nothing changed, when a chunk is needed and none is free: never
// when the slot already has flags there, or gets none.
bool IndexWriter::set_flags(uint32_t block, uint32_t slot, uint32_t before, uint32_t flags) {
  uint32_t* word = view_.block(block) + kHolders;
  if (before == flags) return true;
  const uint32_t holders = *word;
  const bool shared = (holders & kManyHolders) != 0;
  if (shared || (holders != 0 && (holders & kIndexSlotMask) != slot)) {
    if (!set_in_chunks(block, slot, flags)) return false;
  } else {
    store_release(word, flags == 0 ? 0 : slot | flags << kIndexSlotBits);
  }
  count_change(slot, before, flags);
  const bool listed = (view_.block(block)[kChild] & 0x80000000) != 0;
  if (listed && shared != ((*word & kManyHolders) != 0)) touch(block);
  return true;
}

bool IndexWriter::set_in_chunks(uint32_t block, uint32_t slot, uint32_t flags) {
  uint32_t* word = view_.block(block) + kHolders;
  const uint32_t group = slot / 16;
  uint32_t head = *word & ~kManyHolders;
  uint32_t moved = 0;
  if ((*word & kManyHolders) == 0) {
    // The one holder so far moves into a chunk; readers see it once the new slot's flags are there too.
    const uint32_t only = *word;
    moved = head = new_chunk(0, (only & kIndexSlotMask) / 16);
    if (head == 0) return false;
    write_lane(view_.chunk(head), (only & kIndexSlotMask) % 16, only >> kIndexSlotBits);
  }
  uint32_t previous = 0;
  uint32_t at = head;
  while (at != 0 && view_.chunk(at)[3] >> kChunkNextBits != group) {
    previous = at;
    at = view_.chunk(at)[3] & kChunkNextMask;
  }
  if (at == 0) {
    at = new_chunk(head, group);
    if (at == 0) {
      if (moved != 0) give_chunk(moved);
      return false;
    }
    write_lane(view_.chunk(at), slot % 16, flags);
    store_release(word, kManyHolders | at);
    return true;
  }
  write_lane(view_.chunk(at), slot % 16, flags);
  if (moved != 0) store_release(word, kManyHolders | head);
  if (flags == 0 && is_empty(view_.chunk(at))) drop_chunk(block, at, previous);
  if (flags == 0) fold_chunks(block);
  return true;
}

void IndexWriter::drop_chunk(uint32_t block, uint32_t chunk, uint32_t previous) {
  begin_giving(block);
  const uint32_t next = view_.chunk(chunk)[3] & kChunkNextMask;
  if (previous == 0) {
    store_release(view_.block(block) + kHolders, kManyHolders | next);
  } else {
    uint32_t* link = view_.chunk(previous) + 3;
    store_release(link, (*link & ~kChunkNextMask) | next);
  }
  end_giving(block);
  give_chunk(chunk);
}

// A block with one holder left needs no chunk.
void IndexWriter::fold_chunks(uint32_t block) {
  uint32_t* word = view_.block(block) + kHolders;
  const uint32_t head = *word & ~kManyHolders;
  const uint32_t* chunk = view_.chunk(head);
  if ((chunk[3] & kChunkNextMask) != 0) return;
  const uint32_t lanes = held_lanes(chunk);
  if ((lanes & (lanes - 1)) != 0) return;
  const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
  const uint32_t slot = (chunk[3] >> kChunkNextBits) * 16 + lane;
  begin_giving(block);
  store_release(word, slot | lane_flags(chunk, lane) << kIndexSlotBits);
  end_giving(block);
  give_chunk(head);
}

// Takes all holders off a leaf that is about to be freed.
void IndexWriter::drop_holders(uint32_t block) {
  uint32_t* word = view_.block(block) + kHolders;
  each_holder(block, [&](uint32_t slot, uint32_t flags) { count_change(slot, flags, 0); });
  const uint32_t holders = *word;
  begin_giving(block);
  store_release(word, 0);
  end_giving(block);
  if ((holders & kManyHolders) == 0) return;
  for (uint32_t at = holders & ~kManyHolders; at != 0;) {
    const uint32_t next = view_.chunk(at)[3] & kChunkNextMask;
    give_chunk(at);
    at = next;
  }
}

// Sets where a slot has a block, whose flags were `before`, and keeps the reachable bits right, here and below. False when
// there is no chunk.
bool IndexWriter::change(uint32_t block, uint32_t slot, uint32_t before, uint32_t resident) {
  if ((before & kFlagResident) == resident) return true;
  const uint32_t parent = view_.block(block)[kParent];
  const uint32_t above = parent == kRootBlock                       ? kFlagsReachable
                         : parent == kUnknownBlock || resident == 0 ? 0
                                                                    : flags_of(parent, slot);
  uint32_t after = resident;
  for (uint32_t level = 0; level < 2; level++) {
    if ((resident & kHeld[level]) != 0) after |= above & kReachable[level];
    if ((before & ~after & kReachable[level]) != 0) unreach_down(block, slot, level);
  }
  if (!set_flags(block, slot, before, after)) return false;
  for (uint32_t level = 0; level < 2; level++) {
    if ((after & ~before & kReachable[level]) != 0) reach_down(block, slot, level);
  }
  return true;
}

// Sets the bit top down in the held descendants of a block that has just got it.
void IndexWriter::reach_down(uint32_t block, uint32_t slot, uint32_t level) {
  uint32_t at = first_child(block);
  while (at != 0 && view_.slot_unreached[level][slot] != 0) {
    const uint32_t flags = flags_of(at, slot);
    uint32_t next = 0;
    if (unreached(flags, level) != 0) {
      set_flags(at, slot, flags, flags | kReachable[level]);
      next = first_child(at);
    }
    while (next == 0 && at != block) {
      next = view_.block(at)[kAfter];
      if (next == 0) at = view_.block(at)[kParent];
    }
    at = at == block ? 0 : next;
  }
}

uint32_t IndexWriter::first_reached(uint32_t block, uint32_t slot, uint32_t level) const {
  while (block != 0 && (flags_of(block, slot) & kReachable[level]) == 0) block = view_.block(block)[kAfter];
  return block;
}

// Clears the bit deepest first in the descendants of a block that is about to lose it.
void IndexWriter::unreach_down(uint32_t block, uint32_t slot, uint32_t level) {
  uint32_t at = first_reached(first_child(block), slot, level);
  while (at != 0) {
    for (uint32_t below = at; below != 0; below = first_reached(first_child(at), slot, level)) at = below;
    for (;;) {
      const uint32_t flags = flags_of(at, slot);
      set_flags(at, slot, flags, flags & ~kReachable[level]);
      const uint32_t next = first_reached(view_.block(at)[kAfter], slot, level);
      if (next != 0) {
        at = next;
        break;
      }
      at = view_.block(at)[kParent];
      if (at == block) return;
    }
  }
}

}  // namespace millrace
