// Look-ups in the prefix index. All candidates go down one binary search over the depth together: they part where one has
// a block and another has not. The blocks of the next steps are fetched ahead, all at a time. See prefix_index.h.
#include "prefix_index.h"

namespace millrace {
namespace {

// More steps than any sound chain needs: a reader that is led astray by a change stops and reads again.
constexpr uint32_t kChainStepsMax = 128;
constexpr uint32_t kChunkStepsMax = kIndexSlots / 16;
// A range is cut in 16 by 15 probes, of which a search makes 4.
constexpr uint32_t kWarmParts = 16;
constexpr uint32_t kWarmLevels = 4;

uint64_t hash_at(const uint32_t* hashes, uint32_t index) {
  return join_hash(hashes[size_t{index} * 2], hashes[size_t{index} * 2 + 1]);
}

// The depth that halves [low, high]: not its lower end.
uint32_t middle_of(uint32_t low, uint32_t high) { return low + (high - low + 1) / 2; }

uint64_t load_key(const uint32_t* block) {
  return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(const_cast<uint32_t*>(block)))
      .load(std::memory_order_relaxed);
}

}  // namespace

void IndexReader::next_mark() {
  mark_ += 2;
  if (mark_ != 0) return;
  for (uint32_t& mark : marks_) mark = 0;
  mark_ = 2;
}

// Brings the blocks that the next four steps of a search in [low, high] may probe into the cache.
void IndexReader::warm(const uint32_t* hashes, uint32_t low, uint32_t high) {
  struct Span {
    uint32_t low, high;
  };
  Span spans[kWarmParts * 2];
  const uint32_t* buckets[kWarmParts];
  uint32_t probes = 0;
  spans[1] = {low, high};
  for (uint32_t i = 1; i < kWarmParts; i++) {
    const Span span = spans[i];
    if (span.low >= span.high) {
      spans[i * 2] = spans[i * 2 + 1] = span;
      continue;
    }
    const uint32_t middle = middle_of(span.low, span.high);
    spans[i * 2] = {span.low, middle - 1};
    spans[i * 2 + 1] = {middle, span.high};
    buckets[probes] = view_.buckets + view_.bucket_of(hash_at(hashes, middle - 1));
    __builtin_prefetch(buckets[probes++]);
  }
  for (uint32_t i = 0; i < probes; i++) __builtin_prefetch(view_.block(load_relaxed(buckets[i])));
}

bool IndexReader::mark_chunks(uint32_t chunk) {
  for (uint32_t step = 0; step < kChunkStepsMax && chunk <= view_.chunks_max; step++) {
    if (chunk == 0) return true;
    const uint32_t* words = view_.chunk(chunk);
    const uint32_t link = load_acquire(words + 3);
    const uint32_t group = link >> kChunkNextBits;
    const uint32_t reachable = load_acquire(words + 2);
    for (uint32_t lanes = reachable & wanted_[group]; lanes != 0; lanes &= lanes - 1) {
      const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(lanes));
      marks_[group * 16 + lane] = mark_ | (reachable >> (16 + lane) & 1);
    }
    chunk = link & kChunkNextMask;
  }
  return false;
}

// Marks the slots to which the block is reachable. False when it lost its way in memory that was changing.
bool IndexReader::mark_holders(uint64_t hash, uint32_t bucket) {
  uint32_t block = load_acquire(view_.buckets + bucket);
  for (uint32_t step = 0; step < kChainStepsMax && block <= view_.blocks_max; step++) {
    if (block == 0) return true;
    const uint32_t* words = view_.block(block);
    if (load_key(words) == hash) {
      const uint32_t holders = load_acquire(words + kHolders);
      if ((holders & kManyHolders) != 0) return mark_chunks(holders & ~kManyHolders);
      const uint32_t flags = holders >> kIndexSlotBits;
      if ((flags & kIndexFlagReachable) != 0) {
        marks_[holders & kIndexSlotMask] = mark_ | ((flags & kIndexFlagDeviceReachable) != 0 ? 1 : 0);
      }
      return true;
    }
    block = load_acquire(words + kNext);
  }
  return false;
}

void IndexReader::probe(uint64_t hash) {
  const uint32_t bucket = view_.bucket_of(hash);
  const uint32_t* stripe = view_.stripe(bucket);
  for (uint32_t attempt = 0; attempt <= kRetriesMax; attempt++) {
    next_mark();
    const uint32_t sequence = load_acquire(stripe);
    const bool found_way = mark_holders(hash, bucket);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (found_way && (sequence & 1) == 0 && load_relaxed(stripe) == sequence) return;
    retries_++;
  }
  // The smaller depth: nobody is taken to have the block.
  next_mark();
  given_up_++;
}

// Probes the block that ends depth `middle` and parts the items of a range: those without it come first. Returns where
// the others begin.
uint32_t IndexReader::part(const uint32_t* hashes, uint32_t middle, uint32_t begin, uint32_t end) {
  probe(hash_at(hashes, middle - 1));
  uint32_t split = begin;
  for (uint32_t i = begin; i < end; i++) {
    const uint16_t item = items_[i];
    const uint32_t mark = marks_[aliases_[item] & kIndexSlotMask];
    const bool on_device = mark == (mark_ | 1);
    if (on_device && middle > device_low_[item]) device_low_[item] = middle;
    if (!on_device && middle <= device_high_[item]) device_high_[item] = middle - 1;
    if ((mark & ~1u) == mark_) continue;
    items_[i] = items_[split];
    items_[split++] = item;
  }
  return split;
}

void IndexReader::search(const uint32_t* hashes, uint32_t blocks, uint32_t items) {
  // Holders without the first block have depth 0 and take no part in the search.
  __builtin_prefetch(view_.buckets + view_.bucket_of(hash_at(hashes, 0)));
  warm(hashes, 1, blocks);
  const uint32_t first = part(hashes, 1, 0, items);
  uint32_t open = 0;
  if (first < items) ranges_[open++] = {1, blocks, first, items, 0};
  while (open != 0) {
    const Range range = ranges_[--open];
    if (range.low == range.high) {
      for (uint32_t i = range.begin; i < range.end; i++) depth_[items_[i]] = range.low;
      continue;
    }
    if (range.level != 0 && range.level % kWarmLevels == 0) warm(hashes, range.low, range.high);
    const uint32_t middle = middle_of(range.low, range.high);
    const uint32_t split = part(hashes, middle, range.begin, range.end);
    if (split > range.begin) ranges_[open++] = {range.low, middle - 1, range.begin, split, range.level + 1};
    if (split < range.end) ranges_[open++] = {middle, range.high, split, range.end, range.level + 1};
  }
}

// The part on the device ends inside [device_low_, device_high_] where lower tiers hold a part of the prefix.
void IndexReader::search_device(const uint32_t* hashes, uint32_t item) {
  uint32_t low = device_low_[item];
  uint32_t high = device_high_[item] < depth_[item] ? device_high_[item] : depth_[item];
  while (low < high) {
    const uint32_t middle = middle_of(low, high);
    probe(hash_at(hashes, middle - 1));
    if (marks_[aliases_[item] & kIndexSlotMask] == (mark_ | 1)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  device_low_[item] = low;
}

uint32_t IndexReader::lookup(const uint32_t* hashes, uint32_t blocks, const uint32_t* holders, uint32_t holder_count,
                             uint32_t* depths_out) {
  retries_ = 0;
  for (uint32_t attempt = 0;; attempt++) {
    uint32_t items = 0;
    for (uint32_t i = 0; i < holder_count; i++) {
      aliases_[i] = load_acquire(view_.aliases + holders[i]);
      depth_[i] = device_low_[i] = 0;
      device_high_[i] = blocks;
      const uint32_t slot = aliases_[i] & kIndexSlotMask;
      if (slot == 0) continue;
      items_[items++] = static_cast<uint16_t>(i);
      wanted_[slot / 16] |= static_cast<uint16_t>(1u << slot % 16);
    }
    if (items != 0 && blocks != 0) search(hashes, blocks, items);
    for (uint32_t i = 0; i < items; i++) search_device(hashes, items_[i]);
    for (uint32_t i = 0; i < items; i++) wanted_[(aliases_[items_[i]] & kIndexSlotMask) / 16] = 0;

    // A slot that is its holder's no more may already serve another.
    std::atomic_thread_fence(std::memory_order_acquire);
    bool moved = false;
    for (uint32_t i = 0; i < holder_count; i++) {
      const bool same = load_relaxed(view_.aliases + holders[i]) == aliases_[i];
      moved = moved || !same;
      depths_out[i] = same ? depth_[i] : 0;
      depths_out[holder_count + i] = same ? device_low_[i] : 0;
    }
    if (!moved) return retries_;
    retries_++;
    if (attempt < kRetriesMax) continue;
    given_up_++;
    return retries_;
  }
}

}  // namespace millrace
