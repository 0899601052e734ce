// Giving back what removed holders left in the prefix index, its counters, and its self-check. See prefix_index.h.
#include <vector>

#include "prefix_index.h"
#include "prefix_index_visit.h"

namespace millrace {
namespace {

constexpr uint32_t kSlotRetired = 2;

}  // namespace

// Clears retired slots out of one block. No reader can see their bits, so the order among blocks does not matter.
void IndexWriter::sweep_block(uint32_t block) {
  for (;;) {
    uint32_t retired = 0;
    each_holder(block, [&](uint32_t slot, uint32_t) {
      if (view_.slot_state[slot] == kSlotRetired) retired = slot;
    });
    if (retired == 0) break;
    set_flags(block, retired, flags_of(block, retired), 0);
  }
  release(block);
}

bool IndexWriter::sweep(uint32_t steps) {
  for (uint32_t step = 0; step < steps && state_->sweeping != 0; step++) {
    state_->sweep_block = state_->sweep_block >= state_->blocks_made ? 1 : state_->sweep_block + 1;
    if (state_->blocks_made != 0 && view_.block(state_->sweep_block)[kHolders] != 0) sweep_block(state_->sweep_block);
    if (names_.capacity() == 0) continue;
    // A place is looked at again after its entry went: the next one of the run may have moved in.
    const uint32_t place = state_->sweep_name;
    const uint32_t slot = names_.slot_at(place);
    if (slot != 0 && view_.slot_state[slot] == kSlotRetired) {
      names_.erase_at(place);
      state_->names--;
      view_.slot_names[slot]--;
      settle(slot);
    } else {
      state_->sweep_name = place + 1 == names_.capacity() ? 0 : place + 1;
    }
  }
  return state_->sweeping != 0;
}

void IndexWriter::stats(uint32_t* out) const {
  const IndexState& state = *state_;
  const uint64_t predictions = state.prediction_tail - state.prediction_head;
  const uint64_t values[] = {state.blocks,     state.holders,          state.names,            predictions,
                             state.stored,     state.removed,          state.evicted,          state.refused,
                             state.orphans,    state.duplicates,       state.unknown_removals, state.parent_conflicts,
                             state.unknown_holders};
  static_assert(sizeof values / sizeof values[0] == kIndexStatsCount);
  for (uint32_t i = 0; i < kIndexStatsCount; i++) {
    out[i * 2] = static_cast<uint32_t>(values[i]);
    out[i * 2 + 1] = static_cast<uint32_t>(values[i] >> 32);
  }
}

bool IndexWriter::consistent() const {
  constexpr uint32_t kLevelHeld[2] = {kFlagResident, kIndexFlagDevice | kIndexFlagPredicted};
  constexpr uint32_t kLevelBit[2] = {kIndexFlagReachable, kIndexFlagDeviceReachable};
  std::vector<uint32_t> blocks_of_slot(kIndexSlots);
  std::vector<uint32_t> unreached[2] = {std::vector<uint32_t>(kIndexSlots), std::vector<uint32_t>(kIndexSlots)};
  uint32_t chained = 0;
  bool holds = true;
  for (uint32_t bucket = 0; bucket < view_.blocks_max; bucket++) {
    for (uint32_t block = view_.buckets[bucket]; block != 0; block = view_.block(block)[kNext]) {
      chained++;
      const uint32_t* words = view_.block(block);
      const uint32_t parent = words[kParent];
      holds = holds && view_.bucket_of(key_of(block)) == bucket && find(key_of(block)) == block;
      holds = holds && (words[kHolders] != 0 || first_child(block) != 0);
      holds = holds && (first_child(block) != 0) == ((words[kChild] & 0x80000000) == 0);
      for (uint32_t child = first_child(block); child != 0; child = view_.block(child)[kAfter]) {
        holds = holds && view_.block(child)[kParent] == block;
      }
      uint32_t seen = 0;
      each_holder(block, [&](uint32_t slot, uint32_t flags) {
        seen++;
        blocks_of_slot[slot]++;
        // What a sweep has begun to clear is in no order.
        const bool retired = view_.slot_state[slot] == kSlotRetired;
        for (uint32_t level = 0; level < 2; level++) {
          const bool above = parent == kRootBlock ||
                             (parent != kUnknownBlock && (flags_of(parent, slot) & kLevelBit[level]) != 0);
          const bool wanted = above && (flags & kLevelHeld[level]) != 0;
          const bool reached = (flags & kLevelBit[level]) != 0;
          holds = holds && (retired || wanted == reached);
          if (!reached && (flags & kLevelHeld[level]) != 0) unreached[level][slot]++;
        }
      });
      holds = holds && ((words[kHolders] & kManyHolders) != 0) == (seen > 1);
    }
  }
  for (uint32_t slot = 0; slot < kIndexSlots; slot++) {
    holds = holds && view_.slot_blocks[slot] == blocks_of_slot[slot];
    for (uint32_t level = 0; level < 2; level++) {
      holds = holds && view_.slot_unreached[level][slot] == unreached[level][slot];
    }
  }
  uint32_t names = 0;
  for (uint32_t place = 0; place < names_.capacity(); place++) names += names_.slot_at(place) != 0 ? 1 : 0;
  return holds && chained == state_->blocks && names == state_->names;
}

}  // namespace millrace
