// The prefix index (R4) over the shared segment of src/router/index/index-descriptor.ts. One thread at a time writes
// (IndexWriter); any number of threads read (IndexReader), take no lock and write nothing there.
//
// For each (block, slot) there are flags: the tiers, `predicted`, and two *reachable* bits: the slot has this block and
// every ancestor (in any tier; on the device). A store sets them top down, a removal clears them deepest first, so at
// every moment the blocks with the bit are closed under "ancestor of". One bit that is read as set at depth d therefore
// proves that the depth was at least d at that moment, whatever else changes: answers built from such reads cannot
// be too high. Single words change by single stores. Memory that is given back could turn up under another block: this
// happens only between two steps of the sequence word of the block's bucket, which a reader checks after each probe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "millrace/index_descriptor.h"
#include "prefix_index_names.h"

namespace millrace {

inline constexpr uint32_t kRootBlock = 0;
inline constexpr uint32_t kUnknownBlock = 0xffffffff;
inline constexpr uint32_t kIndexSlotBits = 13;
inline constexpr uint32_t kIndexSlotMask = (1u << kIndexSlotBits) - 1;

inline uint32_t load_relaxed(const uint32_t* word) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(word)).load(std::memory_order_relaxed);
}
inline uint32_t load_acquire(const uint32_t* word) {
  return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(word)).load(std::memory_order_acquire);
}
inline void store_relaxed(uint32_t* word, uint32_t value) {
  std::atomic_ref<uint32_t>(*word).store(value, std::memory_order_relaxed);
}
inline void store_release(uint32_t* word, uint32_t value) {
  std::atomic_ref<uint32_t>(*word).store(value, std::memory_order_release);
}
inline uint64_t join_hash(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }

// Words of a block.
enum BlockWord : uint32_t { kKey = 0, kNext = 2, kHolders = 3, kParent = 4, kChild = 5, kAfter = 6, kBefore = 7 };

// Writer's state and counters, behind the words of INDEX_HEADER. Counters are 64-bit.
struct IndexState {
  uint64_t stored, removed, evicted, refused, orphans, duplicates, unknown_removals, parent_conflicts, unknown_holders;
  uint64_t prediction_head, prediction_tail;
  uint32_t blocks, blocks_made, free_block;
  uint32_t chunks_made, free_chunk;
  // Pairs of block and slot.
  uint32_t held;
  uint32_t names, expiries, holders;
  uint32_t leaf_head[2], leaf_tail[2];
  uint32_t next_victim;
  uint32_t sweeping;
  uint32_t sweep_block, sweep_name, drop_name;
};

// The sections of a segment.
struct IndexView {
  uint32_t* header;
  uint32_t* aliases;
  uint32_t* slot_state;
  uint32_t* slot_blocks;
  uint32_t* slot_names;
  uint32_t* slot_unreached[2];
  uint32_t* stripes;
  uint32_t* buckets;
  uint32_t* blocks;
  uint32_t* leaves;
  uint32_t* chunks;
  uint32_t* names;
  uint32_t* expiries;
  uint32_t* predictions;
  uint32_t blocks_max, chunks_max, names_max, predictions_max;
  uint64_t bucket_seed;

  uint32_t* block(uint32_t index) const { return blocks + uint64_t{index} * kIndexBlockWords; }
  uint32_t* chunk(uint32_t index) const { return chunks + uint64_t{index} * kIndexChunkWords; }
  uint32_t bucket_of(uint64_t hash) const {
    const uint64_t mixed = (hash ^ bucket_seed) * 0x9e3779b97f4a7c15ull;
    return static_cast<uint32_t>(((mixed >> 32) * blocks_max) >> 32);
  }
  uint32_t* stripe(uint32_t bucket) const { return stripes + (bucket % kIndexStripes); }
};

// Finds the sections of a segment whose header is written. False when the header is no index's or the words are too few.
bool view_index(uint32_t* words, size_t length, IndexView* view);

// Flags of one slot at a block. Chunk words hold two 16-bit lanes each.
inline constexpr uint32_t kFlagResident =
    kIndexFlagDevice | kIndexFlagHost | kIndexFlagDisk | kIndexFlagPredicted;
inline constexpr uint32_t kFlagTiers = kIndexFlagDevice | kIndexFlagHost | kIndexFlagDisk;
inline constexpr uint32_t kFlagsReachable = kIndexFlagReachable | kIndexFlagDeviceReachable;
inline constexpr uint32_t kManyHolders = 0x80000000;
inline constexpr uint32_t kChunkNextBits = 23;
inline constexpr uint32_t kChunkNextMask = (1u << kChunkNextBits) - 1;

class IndexWriter {
 public:
  explicit IndexWriter(const IndexView& view);

  bool add_holder(uint32_t holder);
  bool remove_holder(uint32_t holder);
  bool clear_holder(uint32_t holder);
  // `parent` is read when `has_parent`; `engine_hashes` is nullptr or holds 4 words a block. Blocks taken.
  uint32_t store(uint32_t holder, bool has_parent, uint64_t parent, const uint32_t* hashes, uint32_t count,
                 uint32_t tier, const uint32_t* engine_hashes);
  uint32_t remove(uint32_t holder, const uint32_t* hashes, uint32_t count, uint32_t tier);
  uint32_t remove_engine(uint32_t holder, const uint32_t* engine_hashes, uint32_t count, uint32_t tier);
  uint32_t translate(uint32_t holder, const uint32_t* engine_hashes, uint32_t count, uint32_t* hashes_out);
  uint32_t predict(uint32_t holder, const uint32_t* hashes, uint32_t from, uint32_t to, uint64_t expires_ms);
  void expire(uint64_t now_ms);
  bool sweep(uint32_t steps);
  // kIndexStatsCount numbers in the order of INDEX_STATS, each as its low and high word.
  void stats(uint32_t* out) const;
  // For tests: whether every link, count and flag agrees with the others.
  bool consistent() const;

 private:
  // Table of blocks (prefix_index_table.cc).
  uint32_t find(uint64_t hash) const;
  uint64_t key_of(uint32_t block) const;
  uint32_t create(uint64_t hash, uint32_t keep);
  void link(uint32_t block, uint32_t parent);
  void unlink(uint32_t block);
  uint32_t free_block(uint32_t block);
  void release(uint32_t block);
  bool evict(uint32_t keep, bool shared);
  void touch(uint32_t block);
  void unlist(uint32_t block);
  uint32_t first_child(uint32_t block) const;
  bool is_ancestor(uint32_t block, uint32_t below) const;

  // Flags of blocks (prefix_index_holders.cc).
  uint32_t flags_of(uint32_t block, uint32_t slot) const;
  bool set_flags(uint32_t block, uint32_t slot, uint32_t before, uint32_t flags);
  bool set_in_chunks(uint32_t block, uint32_t slot, uint32_t flags);
  void drop_chunk(uint32_t block, uint32_t chunk, uint32_t previous);
  void fold_chunks(uint32_t block);
  void drop_holders(uint32_t block);
  template <class Visit>
  void each_holder(uint32_t block, Visit visit) const;
  uint32_t new_chunk(uint32_t next, uint32_t group);
  void give_chunk(uint32_t chunk);
  bool change(uint32_t block, uint32_t slot, uint32_t before, uint32_t resident);
  void reach_down(uint32_t block, uint32_t slot, uint32_t level);
  void unreach_down(uint32_t block, uint32_t slot, uint32_t level);
  uint32_t first_reached(uint32_t block, uint32_t slot, uint32_t level) const;
  void count_change(uint32_t slot, uint32_t before, uint32_t after);
  void begin_giving(uint32_t block);
  void end_giving(uint32_t block);

  // Holders and events (prefix_index_write.cc).
  uint32_t slot_of(uint32_t holder);
  uint32_t new_slot();
  void retire(uint32_t slot);
  void settle(uint32_t slot);
  uint32_t place(uint64_t hash, uint32_t parent);
  bool remove_one(uint32_t block, uint32_t slot, uint32_t tier, uint32_t* left);
  void warm_named(uint32_t slot, const uint32_t* engine_hashes, uint32_t count) const;
  bool name(uint64_t engine_hash, uint32_t slot, uint64_t hash, uint32_t block);
  bool hold(uint32_t block, uint32_t slot, uint32_t before, uint32_t resident);
  void warm_chunk(uint32_t block) const;
  bool drop_dead_name();
  uint32_t names_room() const { return view_.names_max / 20 * 17; }
  void sweep_block(uint32_t block);

  IndexView view_;
  IndexState* state_;
  NameMap names_;
  NameMap expiries_;
};

class IndexReader {
 public:
  explicit IndexReader(const IndexView& view) : view_(view) {}

  // depths_out receives 2 * holder_count words. Returns the number of repeated reads.
  uint32_t lookup(const uint32_t* hashes, uint32_t blocks, const uint32_t* holders, uint32_t holder_count,
                  uint32_t* depths_out);
  // Reads given up so far: each may have made a depth too small.
  uint32_t given_up() const { return given_up_; }

 private:
  struct Range {
    uint32_t low, high, begin, end, level;
  };

  void search(const uint32_t* hashes, uint32_t blocks, uint32_t items);
  uint32_t part(const uint32_t* hashes, uint32_t middle, uint32_t begin, uint32_t end);
  void search_device(const uint32_t* hashes, uint32_t item);
  void warm(const uint32_t* hashes, uint32_t low, uint32_t high);
  void probe(uint64_t hash);
  bool mark_holders(uint64_t hash, uint32_t bucket);
  bool mark_chunks(uint32_t chunk);
  void next_mark();

  static constexpr uint32_t kRetriesMax = 4;
  IndexView view_;
  uint32_t retries_ = 0;
  uint32_t given_up_ = 0;
  // A slot whose word is mark_ is reachable at the block probed last, one with mark_ + 1 also on the device.
  uint32_t mark_ = 2;
  uint32_t marks_[kIndexSlots] = {};
  uint16_t wanted_[kIndexSlots / 16] = {};
  uint32_t aliases_[kIndexHolders];
  uint16_t items_[kIndexHolders];
  uint32_t depth_[kIndexHolders];
  uint32_t device_low_[kIndexHolders];
  uint32_t device_high_[kIndexHolders];
  Range ranges_[kIndexHolders + 40];
};

}  // namespace millrace
