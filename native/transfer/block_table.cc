// The owner's side of a block table: lists, eviction and quarantine. Links are indices into the shared memory, so a table
// may lie at different addresses in different processes. See block_table.h; checks of it are in block_table_check.cc.
#include "block_table_records.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <new>

namespace millrace::kv {
namespace {

constexpr uint32_t kMagic = 0x54424b4d;  // "MKBT"
constexpr uint32_t kBlocksMost = 1u << 28;

uint32_t mix(uint64_t hash) { return static_cast<uint32_t>((hash * 0x9e37'79b9'7f4a'7c15u) >> 32); }

template <class Word>
std::atomic_ref<Word> shared(Word& word) {
  return std::atomic_ref<Word>(word);
}

}  // namespace

BlockTable::Block& BlockTable::at(uint32_t block) const { return records_[block]; }

uint64_t BlockTable::bytes_for(uint32_t blocks) {
  static_assert(sizeof(Header) <= 128 && sizeof(Block) == 64);
  return 128 + uint64_t{blocks} * sizeof(Block) + uint64_t{std::bit_ceil(blocks)} * sizeof(uint32_t);
}

bool BlockTable::fits(const void* memory, uint64_t bytes, uint32_t blocks, std::string* error) {
  if (blocks < 1 || blocks > kBlocksMost) {
    *error = "blocks must be from 1 to 2^28; got " + std::to_string(blocks);
  } else if (reinterpret_cast<uintptr_t>(memory) % 64 != 0) {
    *error = "the memory of a block table must be aligned to 64 bytes";
  } else if (bytes < bytes_for(blocks)) {
    *error = "the memory of a block table must have " + std::to_string(bytes_for(blocks)) + " bytes; got " +
             std::to_string(bytes);
  } else {
    return true;
  }
  return false;
}

Status BlockTable::create(void* memory, uint64_t bytes, uint32_t blocks, std::unique_ptr<BlockTable>* out,
                          std::string* error) {
  if (!fits(memory, bytes, blocks, error)) return Status::kInvalid;
  std::unique_ptr<BlockTable> table(new BlockTable);
  table->blocks_ = blocks;
  table->bucket_mask_ = std::bit_ceil(blocks) - 1;
  auto* start = static_cast<uint8_t*>(memory);
  table->header_ = new (start) Header{};
  table->records_ = reinterpret_cast<Block*>(start + 128);
  table->buckets_ = reinterpret_cast<uint32_t*>(start + 128 + uint64_t{blocks} * sizeof(Block));
  Header& header = *table->header_;
  header.free_head = header.free_tail = header.quarantine_head = header.quarantine_tail = kNoBlock;
  header.leaf_head = header.leaf_tail = kNoBlock;
  header.blocks = blocks;
  for (uint32_t bucket = 0; bucket <= table->bucket_mask_; bucket++) table->buckets_[bucket] = kNoBlock;
  for (uint32_t block = 0; block < blocks; block++) {
    new (&table->records_[block]) Block{};
    table->records_[block].parent = table->records_[block].next_in_bucket = kNoBlock;
    table->records_[block].list = kInFree;
    table->push_back(&header.free_head, &header.free_tail, block);
  }
  header.free_count = blocks;
  shared(header.magic).store(kMagic, std::memory_order_release);
  *out = std::move(table);
  return Status::kOk;
}

Status BlockTable::attach(void* memory, uint64_t bytes, std::unique_ptr<BlockTable>* out, std::string* error) {
  auto* header = static_cast<Header*>(memory);
  if (bytes < sizeof(Header) || shared(header->magic).load(std::memory_order_acquire) != kMagic) {
    *error = "the peer's memory holds no block table of a version that is known here";
    return Status::kMismatch;
  }
  // Read once: what was checked is what is used, whatever the other process writes meanwhile.
  const uint32_t blocks = shared(header->blocks).load(std::memory_order_relaxed);
  if (!fits(memory, bytes, blocks, error)) return Status::kInvalid;
  std::unique_ptr<BlockTable> table(new BlockTable);
  table->blocks_ = blocks;
  table->header_ = header;
  table->records_ = reinterpret_cast<Block*>(static_cast<uint8_t*>(memory) + 128);
  *out = std::move(table);
  return Status::kOk;
}

void BlockTable::set_state(Block& block, BlockState state) {
  // Ordered against the look at `inflight` that follows: see `enter`.
  shared(block.state).store(static_cast<uint32_t>(state), std::memory_order_seq_cst);
}

void BlockTable::push_back(uint32_t* head, uint32_t* tail, uint32_t block) {
  Block& record = at(block);
  record.next = kNoBlock;
  record.previous = *tail;
  if (*tail == kNoBlock) {
    *head = block;
  } else {
    at(*tail).next = block;
  }
  *tail = block;
}

void BlockTable::unlink(uint32_t* head, uint32_t* tail, uint32_t block) {
  const Block& record = at(block);
  if (record.previous == kNoBlock) {
    *head = record.next;
  } else {
    at(record.previous).next = record.next;
  }
  if (record.next == kNoBlock) {
    *tail = record.previous;
  } else {
    at(record.next).previous = record.previous;
  }
}

bool BlockTable::is_leaf(const Block& block) const {
  return block.state == static_cast<uint32_t>(BlockState::kReady) && block.pins == 0 && block.pinned_until_ms == 0 &&
         block.children == 0;
}

void BlockTable::place(uint32_t block) {
  Block& record = at(block);
  const bool wanted = is_leaf(record);
  if (wanted == (record.list == kInLeaves)) return;
  Header& header = *header_;
  if (wanted) {
    push_back(&header.leaf_head, &header.leaf_tail, block);
    header.leaf_count++;
    record.list = kInLeaves;
  } else {
    unlink(&header.leaf_head, &header.leaf_tail, block);
    header.leaf_count--;
    record.list = kInNone;
  }
}

uint32_t BlockTable::find(uint64_t hash) const {
  uint32_t block = buckets_[mix(hash) & bucket_mask_];
  while (block != kNoBlock && at(block).hash != hash) block = at(block).next_in_bucket;
  return block;
}

// A ready block loses what it held, its place among the others and its name.
void BlockTable::forget(uint32_t block) {
  Block& record = at(block);
  Header& header = *header_;
  if (record.list == kInLeaves) {
    unlink(&header.leaf_head, &header.leaf_tail, block);
    header.leaf_count--;
    record.list = kInNone;
  }
  uint32_t* link = &buckets_[mix(record.hash) & bucket_mask_];
  while (*link != block) link = &at(*link).next_in_bucket;
  *link = record.next_in_bucket;
  record.next_in_bucket = kNoBlock;
  if (record.parent != kNoBlock) {
    at(record.parent).children--;
    place(record.parent);
    record.parent = kNoBlock;
  }
  header.ready_count--;
}

Status BlockTable::reserve(uint32_t count, uint32_t tenant, uint32_t* blocks_out, uint32_t* generations_out) {
  Header& header = *header_;
  if (header.free_count < count) settle();
  // Evicting a leaf may make its parent one, at the list's end, so how many can go is known only by going. A leaf that is
  // being read would only go to quarantine: it stays.
  uint32_t leaf = header.leaf_head;
  while (header.free_count < count && leaf != kNoBlock) {
    if (shared(at(leaf).inflight).load(std::memory_order_seq_cst) != 0) {
      leaf = at(leaf).next;
      continue;
    }
    const uint32_t passed = at(leaf).previous;
    release(leaf, at(leaf).generation);
    header.evictions++;
    leaf = passed == kNoBlock ? header.leaf_head : at(passed).next;
  }
  if (header.free_count < count) {
    header.refused++;
    return Status::kFull;
  }
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t block = header.free_head;
    Block& record = at(block);
    unlink(&header.free_head, &header.free_tail, block);
    header.free_count--;
    record.list = kInNone;
    record.tenant = tenant;
    record.crc = 0;
    record.hash = 0;
    blocks_out[i] = block;
    generations_out[i] = record.generation + 1;
    shared(record.generation).store(record.generation + 1, std::memory_order_seq_cst);
    set_state(record, BlockState::kReserved);
  }
  header.reserved_count += count;
  return Status::kOk;
}

Status BlockTable::fill(std::span<const uint32_t> blocks) {
  for (const uint32_t block : blocks) {
    if (block >= blocks_ || at(block).state != static_cast<uint32_t>(BlockState::kReserved)) return Status::kInvalid;
  }
  for (const uint32_t block : blocks) {
    // One that is twice in the list is filling already.
    if (at(block).state != static_cast<uint32_t>(BlockState::kReserved)) continue;
    set_state(at(block), BlockState::kFilling);
    header_->reserved_count--;
    header_->filling_count++;
  }
  return Status::kOk;
}

Status BlockTable::commit(uint32_t block, const BlockContent& content, uint32_t* existing) {
  if (block >= blocks_ || at(block).state != static_cast<uint32_t>(BlockState::kFilling)) return Status::kInvalid;
  if (content.parent != kNoBlock &&
      (content.parent >= blocks_ || at(content.parent).state != static_cast<uint32_t>(BlockState::kReady)))
    return Status::kInvalid;
  *existing = find(content.hash);
  if (*existing != kNoBlock) return Status::kBusy;
  Block& record = at(block);
  record.hash = content.hash;
  record.crc = content.crc;
  record.parent = content.parent;
  record.children = 0;
  record.pins = 0;
  record.pinned_until_ms = 0;
  uint32_t& bucket = buckets_[mix(content.hash) & bucket_mask_];
  record.next_in_bucket = bucket;
  bucket = block;
  set_state(record, BlockState::kReady);
  header_->filling_count--;
  header_->ready_count++;
  if (content.parent != kNoBlock) {
    at(content.parent).children++;
    place(content.parent);
  }
  place(block);
  return Status::kOk;
}

Status BlockTable::pin(uint32_t block, uint32_t generation, uint64_t until_ms) {
  if (block >= blocks_) return Status::kInvalid;
  Block& record = at(block);
  if (record.generation != generation || record.state != static_cast<uint32_t>(BlockState::kReady)) return Status::kStale;
  if (record.pins == 0 && record.pinned_until_ms == 0) header_->pinned_count++;
  if (until_ms == 0) {
    record.pins++;
  } else {
    if (record.pinned_until_ms == 0) header_->timed_count++;
    if (until_ms > record.pinned_until_ms) record.pinned_until_ms = until_ms;
  }
  place(block);
  return Status::kOk;
}

Status BlockTable::unpin(uint32_t block, uint32_t generation) {
  if (block >= blocks_) return Status::kInvalid;
  Block& record = at(block);
  if (record.generation != generation || record.state != static_cast<uint32_t>(BlockState::kReady)) return Status::kStale;
  if (record.pins == 0) return Status::kInvalid;
  record.pins--;
  if (record.pins == 0 && record.pinned_until_ms == 0) header_->pinned_count--;
  place(block);
  return Status::kOk;
}

void BlockTable::expire(uint64_t now_ms) {
  for (uint32_t block = 0; block < blocks_ && header_->timed_count > 0; block++) {
    Block& record = at(block);
    if (record.pinned_until_ms == 0 || record.pinned_until_ms > now_ms) continue;
    record.pinned_until_ms = 0;
    header_->timed_count--;
    if (record.pins == 0) header_->pinned_count--;
    place(block);
  }
}

Status BlockTable::release(uint32_t block, uint32_t generation) {
  if (block >= blocks_) return Status::kInvalid;
  Block& record = at(block);
  if (record.generation != generation) return Status::kStale;
  Header& header = *header_;
  const auto state = static_cast<BlockState>(record.state);
  if (state == BlockState::kReady) {
    if (record.pins != 0 || record.pinned_until_ms != 0) return Status::kBusy;
    if (record.children != 0) {
      // Only an owner's release comes here; eviction takes leaves. Children lose their parent.
      for (uint32_t other = 0; other < blocks_ && record.children > 0; other++) {
        if (at(other).state != static_cast<uint32_t>(BlockState::kReady) || at(other).parent != block) continue;
        at(other).parent = kNoBlock;
        record.children--;
      }
    }
    forget(block);
  } else if (state == BlockState::kReserved) {
    header.reserved_count--;
  } else if (state == BlockState::kFilling) {
    header.filling_count--;
  } else {
    return Status::kStale;
  }
  set_state(record, BlockState::kQuarantine);
  push_back(&header.quarantine_head, &header.quarantine_tail, block);
  record.list = kInQuarantine;
  header.quarantine_count++;
  free_if_left(block);
  return Status::kOk;
}

// Out of quarantine, when no operation is in flight.
void BlockTable::free_if_left(uint32_t block) {
  Header& header = *header_;
  Block& record = at(block);
  if (shared(record.inflight).load(std::memory_order_seq_cst) != 0) return;
  unlink(&header.quarantine_head, &header.quarantine_tail, block);
  header.quarantine_count--;
  set_state(record, BlockState::kFree);
  push_back(&header.free_head, &header.free_tail, block);
  record.list = kInFree;
  header.free_count++;
}

void BlockTable::settle() {
  uint32_t next;
  for (uint32_t block = header_->quarantine_head; block != kNoBlock; block = next) {
    next = at(block).next;
    free_if_left(block);
  }
}

uint32_t BlockTable::match(std::span<const uint64_t> hashes, uint32_t* blocks_out) {
  Header& header = *header_;
  uint32_t count = 0;
  for (; count < hashes.size(); count++) {
    const uint32_t block = find(hashes[count]);
    if (block == kNoBlock) break;
    blocks_out[count] = block;
  }
  // Used now, the deepest first: of one sequence the end goes before the beginning.
  for (uint32_t i = count; i-- > 0;) {
    const uint32_t block = blocks_out[i];
    if (at(block).list != kInLeaves) continue;
    unlink(&header.leaf_head, &header.leaf_tail, block);
    push_back(&header.leaf_head, &header.leaf_tail, block);
  }
  return count;
}

BlockStats BlockTable::stats() {
  settle();
  const Header& header = *header_;
  return {header.free_count,       header.reserved_count, header.filling_count, header.ready_count,
          header.quarantine_count, header.pinned_count,   header.evictions,     header.refused};
}

Status BlockTable::enter(uint32_t block, uint32_t generation) {
  if (block >= blocks_) return Status::kInvalid;
  Block& record = at(block);
  shared(record.inflight).fetch_add(1, std::memory_order_seq_cst);
  const auto state = static_cast<BlockState>(shared(record.state).load(std::memory_order_seq_cst));
  const bool lives = state == BlockState::kReserved || state == BlockState::kFilling || state == BlockState::kReady;
  if (lives && shared(record.generation).load(std::memory_order_seq_cst) == generation) return Status::kOk;
  leave(block);
  return Status::kStale;
}

void BlockTable::leave(uint32_t block) { shared(at(block).inflight).fetch_sub(1, std::memory_order_seq_cst); }

uint32_t BlockTable::generation(uint32_t block) const {
  return shared(at(block).generation).load(std::memory_order_seq_cst);
}

BlockState BlockTable::state(uint32_t block) const {
  return static_cast<BlockState>(shared(at(block).state).load(std::memory_order_seq_cst));
}

}  // namespace millrace::kv
