// Holders, events and predictions of the prefix index: see prefix_index.h.
#include "prefix_index.h"
#include "prefix_index_visit.h"

namespace millrace {
namespace {

enum SlotState : uint32_t { kSlotFree = 0, kSlotUsed = 1, kSlotRetired = 2 };
constexpr uint32_t kPrefetchAhead = 8;
// Blocks whose names, buckets and entries are fetched together.
constexpr uint32_t kGroup = 16;
constexpr uint32_t kDropNameSteps = 256;
// Leaves that one store may drop to get a name or a chunk.
constexpr uint32_t kMakeRoomEvictions = 4;

uint64_t hash_at(const uint32_t* hashes, uint32_t index) {
  return join_hash(hashes[size_t{index} * 2], hashes[size_t{index} * 2 + 1]);
}

uint64_t fold(uint64_t left, uint64_t right) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(left) * right;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// 64 bits of (engine hash, slot): the seed keeps an engine from choosing places.
uint64_t engine_key(const uint32_t* hash, uint32_t slot, uint64_t seed) {
  const uint64_t first = join_hash(hash[0], hash[1]) ^ seed ^ 0xa0761d6478bd642full;
  const uint64_t second = join_hash(hash[2], hash[3]) ^ slot ^ 0xe7037ed1a0b428dbull;
  return fold(first, fold(second, seed ^ 0x8ebc6af09c88c6e3ull) | 1);
}

uint64_t expiry_key(uint64_t hash, uint32_t slot) { return fold(hash ^ 0xa0761d6478bd642full, slot ^ 0xe7037ed1a0b428dbull); }

}  // namespace

IndexWriter::IndexWriter(const IndexView& view)
    : view_(view),
      state_(reinterpret_cast<IndexState*>(view.header + kIndexAlignWords)),
      names_(view.names, view.names_max),
      expiries_(view.expiries, view.predictions_max * 2) {
  static_assert(sizeof(IndexState) <= (kIndexHeaderWords - kIndexAlignWords) * sizeof(uint32_t));
}

// The slot of a known holder, else 0.
uint32_t IndexWriter::slot_of(uint32_t holder) {
  const uint32_t slot = view_.aliases[holder] & kIndexSlotMask;
  if (slot == 0) state_->unknown_holders++;
  return slot;
}

uint32_t IndexWriter::new_slot() {
  // 4,096 holders and 8,191 slots: when none is free, half of them wait to be swept.
  for (;;) {
    for (uint32_t slot = 1; slot < kIndexSlots; slot++) {
      if (view_.slot_state[slot] != kSlotFree) continue;
      view_.slot_state[slot] = kSlotUsed;
      return slot;
    }
    sweep(view_.blocks_max);
  }
}

void IndexWriter::retire(uint32_t slot) {
  view_.slot_state[slot] = kSlotRetired;
  state_->sweeping++;
  settle(slot);
}

// A retired slot that nothing names any more can be given out again.
void IndexWriter::settle(uint32_t slot) {
  if (view_.slot_state[slot] != kSlotRetired || (view_.slot_blocks[slot] | view_.slot_names[slot]) != 0) return;
  view_.slot_state[slot] = kSlotFree;
  state_->sweeping--;
}

bool IndexWriter::add_holder(uint32_t holder) {
  uint32_t* alias = view_.aliases + holder;
  if ((*alias & kIndexSlotMask) != 0) return false;
  store_release(alias, ((*alias >> kIndexSlotBits) + 1) << kIndexSlotBits | new_slot());
  state_->holders++;
  return true;
}

bool IndexWriter::remove_holder(uint32_t holder) {
  uint32_t* alias = view_.aliases + holder;
  const uint32_t slot = *alias & kIndexSlotMask;
  if (slot == 0) return false;
  store_relaxed(alias, ((*alias >> kIndexSlotBits) + 1) << kIndexSlotBits);
  std::atomic_thread_fence(std::memory_order_release);
  retire(slot);
  state_->holders--;
  return true;
}

bool IndexWriter::clear_holder(uint32_t holder) {
  return remove_holder(holder) && add_holder(holder);
}

// Finds or makes a block below `parent` and marks it as just used; 0 after a conflict or without room.
uint32_t IndexWriter::place(uint64_t hash, uint32_t parent) {
  uint32_t block = find(hash);
  if (block == 0) {
    block = create(hash, parent);
    if (block == 0) {
      state_->refused++;
      return 0;
    }
    link(block, parent);
  } else if (view_.block(block)[kParent] == kUnknownBlock && !is_ancestor(block, parent)) {
    link(block, parent);
  }
  if (view_.block(block)[kParent] != parent) {
    state_->parent_conflicts++;
    return 0;
  }
  return block;
}

uint32_t IndexWriter::store(uint32_t holder, bool has_parent, uint64_t parent, const uint32_t* hashes, uint32_t count,
                            uint32_t tier, const uint32_t* engine_hashes) {
  const uint32_t slot = slot_of(holder);
  if (slot == 0 || count == 0) return 0;
  if (has_parent && parent == hash_at(hashes, 0)) {
    state_->parent_conflicts++;
    return 0;
  }
  uint32_t first = kRootBlock;
  if (has_parent) {
    first = find(parent);
    if (first == 0) first = create(parent, 0);
    if (first == 0) {
      state_->refused += count;
      return 0;
    }
    if ((flags_of(first, slot) & kFlagResident) == 0) state_->orphans++;
  }
  uint32_t before = first;
  uint32_t taken = 0;
  for (; taken < count; taken++) {
    if (taken + kPrefetchAhead < count) {
      __builtin_prefetch(view_.buckets + view_.bucket_of(hash_at(hashes, taken + kPrefetchAhead)), 1);
      const uint64_t soon = hash_at(hashes, taken + kPrefetchAhead / 2);
      __builtin_prefetch(view_.block(view_.buckets[view_.bucket_of(soon)]));
      warm_chunk(view_.buckets[view_.bucket_of(hash_at(hashes, taken + kPrefetchAhead / 4))]);
      if (engine_hashes != nullptr) {
        names_.prefetch(engine_key(engine_hashes + size_t{taken + kPrefetchAhead} * kIndexEngineHashWords, slot, view_.bucket_seed));
      }
    }
    const uint64_t hash = hash_at(hashes, taken);
    const uint32_t block = place(hash, before);
    if (block == 0) break;
    const uint32_t flags = flags_of(block, slot);
    const uint32_t resident = (flags & kFlagTiers) | 1u << tier;
    touch(block);
    const bool named = engine_hashes == nullptr ||
                       name(engine_key(engine_hashes + size_t{taken} * kIndexEngineHashWords, slot, view_.bucket_seed),
                            slot, hash, block);
    if (!named || !hold(block, slot, flags, resident)) {
      state_->refused += count - taken;
      release(block);
      break;
    }
    if ((flags & 1u << tier) != 0) state_->duplicates++;
    if ((flags & kIndexFlagPredicted) != 0 && expiries_.erase(expiry_key(hash, slot), slot)) state_->expiries--;
    before = block;
  }
  // A placeholder whose first child found no room may be gone already.
  if (has_parent && taken == 0 && (first = find(parent)) != 0 && first_child(first) == 0) {
    touch(first);
    release(first);
  }
  state_->stored += taken;
  return taken;
}

// `*left`: the tiers in which the slot still has the block.
bool IndexWriter::remove_one(uint32_t block, uint32_t slot, uint32_t tier, uint32_t* left) {
  const uint32_t flags = block == 0 ? 0 : flags_of(block, slot);
  *left = flags & kFlagTiers & ~(1u << tier);
  if ((flags & 1u << tier) == 0) {
    state_->unknown_removals++;
    return false;
  }
  change(block, slot, flags, flags & kFlagResident & ~(1u << tier));
  release(block);
  state_->removed++;
  return true;
}

uint32_t IndexWriter::remove(uint32_t holder, const uint32_t* hashes, uint32_t count, uint32_t tier) {
  const uint32_t slot = slot_of(holder);
  if (slot == 0) return 0;
  uint32_t removed = 0;
  uint32_t left = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (i + kPrefetchAhead < count) {
      __builtin_prefetch(view_.buckets + view_.bucket_of(hash_at(hashes, i + kPrefetchAhead)), 1);
    }
    removed += remove_one(find(hash_at(hashes, i)), slot, tier, &left) ? 1 : 0;
  }
  return removed;
}

// Brings what the next removals by name will touch into the cache: each step for the whole group at a time.
void IndexWriter::warm_named(uint32_t slot, const uint32_t* engine_hashes, uint32_t count) const {
  uint64_t keys[kGroup];
  uint32_t buckets[kGroup];
  const uint32_t group = count < kGroup ? count : kGroup;
  for (uint32_t i = 0; i < group; i++) {
    keys[i] = engine_key(engine_hashes + size_t{i} * kIndexEngineHashWords, slot, view_.bucket_seed);
    names_.prefetch(keys[i]);
  }
  for (uint32_t i = 0; i < group; i++) {
    const uint64_t* hash = names_.find(keys[i], slot);
    buckets[i] = hash == nullptr ? 0 : view_.bucket_of(*hash);
    __builtin_prefetch(view_.buckets + buckets[i]);
  }
  for (uint32_t i = 0; i < group; i++) __builtin_prefetch(view_.block(view_.buckets[buckets[i]]), 1);
  for (uint32_t i = 0; i < group; i++) warm_chunk(view_.buckets[buckets[i]]);
}

// Brings the first chunk of a shared block into the cache.
void IndexWriter::warm_chunk(uint32_t block) const {
  const uint32_t holders = view_.block(block)[kHolders];
  if ((holders & kManyHolders) != 0) __builtin_prefetch(view_.chunk(holders & ~kManyHolders), 1);
}

uint32_t IndexWriter::remove_engine(uint32_t holder, const uint32_t* engine_hashes, uint32_t count, uint32_t tier) {
  const uint32_t slot = slot_of(holder);
  if (slot == 0) return 0;
  uint32_t removed = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (i % kGroup == 0) warm_named(slot, engine_hashes + size_t{i} * kIndexEngineHashWords, count - i);
    const uint64_t key = engine_key(engine_hashes + size_t{i} * kIndexEngineHashWords, slot, view_.bucket_seed);
    const uint64_t* hash = names_.find(key, slot);
    if (hash == nullptr) {
      state_->unknown_removals++;
      continue;
    }
    uint32_t left = 0;
    removed += remove_one(find(*hash), slot, tier, &left) ? 1 : 0;
    if (left != 0) continue;
    names_.erase(key, slot);
    state_->names--;
    view_.slot_names[slot]--;
  }
  return removed;
}

uint32_t IndexWriter::translate(uint32_t holder, const uint32_t* engine_hashes, uint32_t count, uint32_t* hashes_out) {
  const uint32_t slot = slot_of(holder);
  for (uint32_t i = 0; i < count; i++) {
    const uint64_t* hash =
        slot == 0 ? nullptr
                  : names_.find(engine_key(engine_hashes + size_t{i} * kIndexEngineHashWords, slot, view_.bucket_seed), slot);
    if (hash == nullptr) return i;
    hashes_out[size_t{i} * 2] = static_cast<uint32_t>(*hash);
    hashes_out[size_t{i} * 2 + 1] = static_cast<uint32_t>(*hash >> 32);
  }
  return count;
}

// `change` that drops shared leaves when no chunk is free.
bool IndexWriter::hold(uint32_t block, uint32_t slot, uint32_t before, uint32_t resident) {
  for (uint32_t i = 0; i < kMakeRoomEvictions; i++) {
    if (change(block, slot, before, resident)) return true;
    if (!evict(block, true)) return false;
  }
  return change(block, slot, before, resident);
}

// Notes the engine's name of a block; false when there is no room for it.
bool IndexWriter::name(uint64_t engine_hash, uint32_t slot, uint64_t hash, uint32_t block) {
  bool added = false;
  // What goes early leaves dead names, so that there are always some to find when no place is free.
  for (uint32_t i = 0; i < kMakeRoomEvictions && state_->held >= names_room() / 16 * 15; i++) evict(block, false);
  if (state_->names >= names_room() && names_.find(engine_hash, slot) == nullptr && !drop_dead_name()) return false;
  if (!names_.put(engine_hash, slot, hash, &added)) return false;
  if (added) {
    state_->names++;
    view_.slot_names[slot]++;
  }
  return true;
}

// Looks at the next few names for one whose block was evicted or whose holder is gone, and drops it.
bool IndexWriter::drop_dead_name() {
  for (uint32_t step = 0; step < kDropNameSteps; step++) {
    const uint32_t place = state_->drop_name;
    state_->drop_name = place + 1 == names_.capacity() ? 0 : place + 1;
    __builtin_prefetch(view_.buckets + view_.bucket_of(names_.value_at((place + 2 * kPrefetchAhead) % names_.capacity())));
    const uint64_t soon = names_.value_at((place + kPrefetchAhead) % names_.capacity());
    __builtin_prefetch(view_.block(view_.buckets[view_.bucket_of(soon)]));
    const uint32_t slot = names_.slot_at(place);
    if (slot == 0) continue;
    const uint32_t block = view_.slot_state[slot] == kSlotRetired ? 0 : find(names_.value_at(place));
    if (block != 0 && (flags_of(block, slot) & kFlagTiers) != 0) continue;
    names_.erase_at(place);
    state_->names--;
    view_.slot_names[slot]--;
    settle(slot);
    return true;
  }
  return false;
}

uint32_t IndexWriter::predict(uint32_t holder, const uint32_t* hashes, uint32_t from, uint32_t to, uint64_t expires_ms) {
  const uint32_t slot = slot_of(holder);
  uint32_t before = from == 0 ? kRootBlock : find(hash_at(hashes, from - 1));
  if (slot == 0 || (from != 0 && before == 0)) return 0;
  for (uint32_t i = from; i < to; i++) {
    if (state_->prediction_tail - state_->prediction_head == view_.predictions_max) return i - from;
    const uint64_t hash = hash_at(hashes, i);
    const uint32_t block = place(hash, before);
    if (block == 0) return i - from;
    const uint32_t flags = flags_of(block, slot);
    touch(block);
    if ((flags & kIndexFlagDevice) == 0) {
      bool added = false;
      const uint64_t key = expiry_key(hash, slot);
      const bool noted = expiries_.put(key, slot, expires_ms, &added);
      if (added) state_->expiries++;
      if (!noted || !hold(block, slot, flags, (flags & kFlagResident) | kIndexFlagPredicted)) {
        if (added && expiries_.erase(key, slot)) state_->expiries--;
        state_->refused++;
        release(block);
        return i - from;
      }
      uint32_t* record =
          view_.predictions + state_->prediction_tail++ % view_.predictions_max * kIndexPredictionWords;
      record[0] = hashes[size_t{i} * 2];
      record[1] = hashes[size_t{i} * 2 + 1];
      record[2] = slot;
      record[3] = static_cast<uint32_t>(expires_ms);
      record[4] = static_cast<uint32_t>(expires_ms >> 32);
    }
    before = block;
  }
  return to - from;
}

void IndexWriter::expire(uint64_t now_ms) {
  while (state_->prediction_head != state_->prediction_tail) {
    const uint32_t* record =
        view_.predictions + state_->prediction_head % view_.predictions_max * kIndexPredictionWords;
    if (join_hash(record[3], record[4]) > now_ms) return;
    state_->prediction_head++;
    const uint64_t hash = join_hash(record[0], record[1]);
    const uint32_t slot = record[2];
    const uint64_t* latest = expiries_.find(expiry_key(hash, slot), slot);
    // Confirmed, or predicted again for longer: then a later record ends it.
    if (latest == nullptr || *latest > now_ms) continue;
    expiries_.erase(expiry_key(hash, slot), slot);
    state_->expiries--;
    const uint32_t block = find(hash);
    const uint32_t flags = block == 0 ? 0 : flags_of(block, slot);
    if ((flags & kIndexFlagPredicted) == 0) continue;
    change(block, slot, flags, flags & kFlagTiers);
    release(block);
  }
}

}  // namespace millrace
