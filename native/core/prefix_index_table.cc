// The blocks of the prefix index: hash chains, the tree over them, the lists of leaves and eviction. See prefix_index.h.
#include <cstring>

#include "prefix_index.h"

namespace millrace {
namespace {

// Every so many evictions the oldest shared leaf goes, so that stale shared blocks do not stay for ever.
constexpr uint32_t kSharedEvictionPeriod = 8;
constexpr uint32_t kListed = 0x80000000;

size_t aligned(uint64_t words) { return (words + kIndexAlignWords - 1) / kIndexAlignWords * kIndexAlignWords; }

}  // namespace

bool view_index(uint32_t* words, size_t length, IndexView* view) {
  if (length < kIndexHeaderWords || words[kIndexHeaderMagic] != kIndexMagic) return false;
  view->header = words;
  view->blocks_max = words[kIndexHeaderBlocksMax];
  view->chunks_max = words[kIndexHeaderChunksMax];
  view->names_max = words[kIndexHeaderNamesMax];
  view->predictions_max = words[kIndexHeaderPredictionsMax];
  view->bucket_seed = join_hash(words[kIndexHeaderBucketSeedLow], words[kIndexHeaderBucketSeedHigh]);
  constexpr uint32_t kAnyMax = 1u << 28;
  if (view->blocks_max < 2 || view->blocks_max > kAnyMax || view->chunks_max > kIndexChunksMax ||
      view->names_max > kAnyMax || view->predictions_max > kAnyMax || view->predictions_max == 0) {
    return false;
  }
  uint64_t at = kIndexHeaderWords;
  const auto section = [&](uint64_t section_words) {
    uint32_t* base = words + at;
    at += aligned(section_words);
    return base;
  };
  view->aliases = section(kIndexHolders);
  view->slot_state = section(kIndexSlots);
  view->slot_blocks = section(kIndexSlots);
  view->slot_names = section(kIndexSlots);
  view->slot_unreached[0] = section(kIndexSlots);
  view->slot_unreached[1] = section(kIndexSlots);
  view->stripes = section(kIndexStripes);
  view->buckets = section(view->blocks_max);
  view->blocks = section((uint64_t{view->blocks_max} + 1) * kIndexBlockWords);
  view->leaves = section(uint64_t{view->blocks_max} + 1);
  view->chunks = section((uint64_t{view->chunks_max} + 1) * kIndexChunkWords);
  view->names = section(uint64_t{view->names_max} * kIndexNameWords);
  view->expiries = section(uint64_t{view->predictions_max} * 2 * kIndexNameWords);
  view->predictions = section(uint64_t{view->predictions_max} * kIndexPredictionWords);
  return at <= length;
}

uint64_t IndexWriter::key_of(uint32_t block) const {
  const uint32_t* words = view_.block(block);
  return join_hash(words[kKey], words[kKey + 1]);
}

uint32_t IndexWriter::find(uint64_t hash) const {
  uint32_t block = view_.buckets[view_.bucket_of(hash)];
  while (block != 0 && key_of(block) != hash) block = view_.block(block)[kNext];
  return block;
}

// Makes a block with no parent yet; 0 when there is no room. `keep` is not evicted.
uint32_t IndexWriter::create(uint64_t hash, uint32_t keep) {
  if (state_->free_block == 0 && state_->blocks_made == view_.blocks_max && !evict(keep, false)) return 0;
  uint32_t block = state_->free_block;
  if (block != 0) {
    state_->free_block = view_.block(block)[kNext];
  } else {
    block = ++state_->blocks_made;
  }
  state_->blocks++;
  uint32_t* bucket = view_.buckets + view_.bucket_of(hash);
  uint32_t* words = view_.block(block);
  store_relaxed(words + kKey, static_cast<uint32_t>(hash));
  store_relaxed(words + kKey + 1, static_cast<uint32_t>(hash >> 32));
  store_relaxed(words + kHolders, 0);
  store_relaxed(words + kNext, *bucket);
  words[kParent] = kUnknownBlock;
  words[kChild] = words[kAfter] = words[kBefore] = 0;
  store_release(bucket, block);
  return block;
}

uint32_t IndexWriter::first_child(uint32_t block) const {
  const uint32_t child = view_.block(block)[kChild];
  return (child & kListed) != 0 ? 0 : child;
}

void IndexWriter::link(uint32_t block, uint32_t parent) {
  uint32_t* words = view_.block(block);
  words[kParent] = parent;
  if (parent == kRootBlock) return;
  unlist(parent);
  uint32_t* above = view_.block(parent);
  words[kAfter] = above[kChild];
  words[kBefore] = 0;
  if (above[kChild] != 0) view_.block(above[kChild])[kBefore] = block;
  above[kChild] = block;
}

void IndexWriter::unlink(uint32_t block) {
  const uint32_t* words = view_.block(block);
  const uint32_t parent = words[kParent];
  if (parent == kRootBlock || parent == kUnknownBlock) return;
  if (words[kAfter] != 0) view_.block(words[kAfter])[kBefore] = words[kBefore];
  if (words[kBefore] != 0) {
    view_.block(words[kBefore])[kAfter] = words[kAfter];
  } else {
    view_.block(parent)[kChild] = words[kAfter];
  }
}

// Puts a leaf at the young end of its list: list 1 for shared blocks, list 0 for the others.
void IndexWriter::touch(uint32_t block) {
  unlist(block);
  uint32_t* words = view_.block(block);
  if (words[kChild] != 0) return;
  const uint32_t list = (words[kHolders] & kManyHolders) != 0 ? 1 : 0;
  const uint32_t tail = state_->leaf_tail[list];
  words[kChild] = kListed;
  view_.leaves[block] = tail | list << 31;
  if (tail != 0) {
    view_.block(tail)[kChild] = kListed | block;
  } else {
    state_->leaf_head[list] = block;
  }
  state_->leaf_tail[list] = block;
}

void IndexWriter::unlist(uint32_t block) {
  uint32_t* words = view_.block(block);
  if ((words[kChild] & kListed) == 0) return;
  const uint32_t next = words[kChild] & ~kListed;
  const uint32_t list = view_.leaves[block] >> 31;
  const uint32_t previous = view_.leaves[block] & ~kListed;
  if (previous != 0) {
    view_.block(previous)[kChild] = kListed | next;
  } else {
    state_->leaf_head[list] = next;
  }
  if (next != 0) {
    view_.leaves[next] = previous | list << 31;
  } else {
    state_->leaf_tail[list] = previous;
  }
  words[kChild] = 0;
}

bool IndexWriter::is_ancestor(uint32_t block, uint32_t below) const {
  while (below != kRootBlock && below != kUnknownBlock && below != block) below = view_.block(below)[kParent];
  return below == block;
}

// Takes a leaf that nobody holds, or that drop_holders emptied, out of the table; returns its parent.
uint32_t IndexWriter::free_block(uint32_t block) {
  uint32_t* words = view_.block(block);
  uint32_t* at = view_.buckets + view_.bucket_of(key_of(block));
  begin_giving(block);
  while (*at != block) at = view_.block(*at) + kNext;
  store_release(at, words[kNext]);
  end_giving(block);
  unlist(block);
  unlink(block);
  store_relaxed(words + kNext, state_->free_block);
  state_->free_block = block;
  state_->blocks--;
  if (state_->next_victim == block) state_->next_victim = 0;
  const uint32_t parent = words[kParent];
  if (parent == kRootBlock || parent == kUnknownBlock) return 0;
  if (first_child(parent) == 0) touch(parent);
  return parent;
}

// Frees a block that nobody holds and no other block needs, and then its parent likewise.
void IndexWriter::release(uint32_t block) {
  while (block != 0 && view_.block(block)[kHolders] == 0 && first_child(block) == 0) block = free_block(block);
}

// Drops one leaf other than `keep`: the parent of the one before while it is an unshared leaf (a chain goes from its
// end), else the oldest of those with the fewest holders, or of the shared ones. False when there is none.
bool IndexWriter::evict(uint32_t keep, bool shared) {
  uint32_t victim = state_->next_victim;
  if (shared || victim == keep || victim == 0 || view_.leaves[victim] >> 31 != 0 || (view_.block(victim)[kChild] & kListed) == 0) {
    victim = 0;
    const uint32_t first = shared || state_->evicted % kSharedEvictionPeriod == 0 ? 1 : 0;
    for (uint32_t list : {first, 1 - first}) {
      if (victim != 0) break;
      victim = state_->leaf_head[list];
      if (victim != 0 && victim == keep) victim = view_.block(victim)[kChild] & ~kListed;
    }
  }
  if (victim == 0) return false;
  drop_holders(victim);
  uint32_t parent = free_block(victim);
  while (parent != 0 && parent != keep && view_.block(parent)[kHolders] == 0 && first_child(parent) == 0) {
    parent = free_block(parent);
  }
  state_->next_victim = parent;
  state_->evicted++;
  return true;
}

}  // namespace millrace
