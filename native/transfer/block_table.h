// States of a pool's blocks (K4), one cache line each, in memory that peers on the same host may map to read:
//
//     free → reserved → filling → ready ⇄ pinned         ready, with nobody's pin, is what eviction may take
//       ↑                            ↓ release, evict
//       └────── quarantine ←─────────┘  while an operation is in flight
//
// Threads: one owner thread calls everything but `enter`, `leave` and `generation`, which any thread may call. A block with
// an operation in flight is never handed out again: whoever works on it counts itself in and looks at the state after
// that; the owner changes the state and looks at the count after that; so one of the two sees the other. Peers keep no
// counts here, as they may die with them: their agent's grants are counted by ours. The generation goes up with every
// reservation, and a reader that compares it before and after its copy knows whose bytes it has.
//
// Eviction is leaf first: a block whose children are resident stays, and among leaves the least recently used goes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "status.h"

namespace millrace::kv {

inline constexpr uint32_t kNoBlock = 0xffff'ffff;

enum class BlockState : uint32_t { kFree = 0, kReserved = 1, kFilling = 2, kReady = 3, kQuarantine = 4 };

struct BlockStats {
  uint32_t free, reserved, filling, ready, quarantine;
  // Of the ready ones, those that somebody pins.
  uint32_t pinned;
  uint64_t evictions;
  // Reservations that found too few blocks to take.
  uint64_t refused;
};

// What a reserved and filled block holds.
struct BlockContent {
  // Chained sequence hash; unique among the ready blocks.
  uint64_t hash;
  // CRC-32C of the block's bytes in plane order, 0 when it was not computed.
  uint32_t crc;
  // The block before it in the sequence, or kNoBlock.
  uint32_t parent;
};

class BlockTable {
 public:
  // Bytes of the memory that a table of so many blocks needs.
  static uint64_t bytes_for(uint32_t blocks);
  // Over zeroed memory, aligned to 64 bytes, that the caller keeps. kInvalid with the reason in `error`.
  static Status create(void* memory, uint64_t bytes, uint32_t blocks, std::unique_ptr<BlockTable>* out,
                       std::string* error);
  // Over the table of another process, to read generations.
  static Status attach(void* memory, uint64_t bytes, std::unique_ptr<BlockTable>* out, std::string* error);

  uint32_t blocks() const { return blocks_; }

  // Takes `count` blocks for `tenant`, evicting where too few are free; kFull, and nothing taken, when that is not enough.
  Status reserve(uint32_t count, uint32_t tenant, uint32_t* blocks_out, uint32_t* generations_out);
  // A write into reserved blocks begins.
  Status fill(std::span<const uint32_t> blocks);
  // The block is written: ready, unpinned. kBusy when a block with this hash is ready already (its number in
  // `*existing`): the caller releases its own and uses that one. kInvalid when the parent is not ready.
  Status commit(uint32_t block, const BlockContent& content, uint32_t* existing);
  // Pins count. `until_ms` holds it besides until that time of the owner's clock; 0: no time. kStale for another generation.
  Status pin(uint32_t block, uint32_t generation, uint64_t until_ms);
  Status unpin(uint32_t block, uint32_t generation);
  // Ends times that are over; call it with the owner's clock before `reserve` and `stats` matter.
  void expire(uint64_t now_ms);
  // To free, or to quarantine while operations are in flight. Children stay ready and become roots. kBusy while pinned.
  Status release(uint32_t block, uint32_t generation);
  // The longest prefix of `hashes` that is ready; used now.
  uint32_t match(std::span<const uint64_t> hashes, uint32_t* blocks_out);
  // Frees blocks in quarantine whose last operation has left.
  void settle();
  BlockStats stats();

  // Any thread. An operation that will touch the block's bytes: kStale unless the block is reserved, filling or ready
  // under this generation.
  Status enter(uint32_t block, uint32_t generation);
  void leave(uint32_t block);
  uint32_t generation(uint32_t block) const;
  BlockState state(uint32_t block) const;

  // Every list, count and link agrees with every other. For tests.
  bool consistent() const;

 private:
  struct Header;
  struct Block;

  BlockTable() = default;
  static bool fits(const void* memory, uint64_t bytes, uint32_t blocks, std::string* error);
  Block& at(uint32_t block) const;
  void set_state(Block& block, BlockState state);
  void push_back(uint32_t* head, uint32_t* tail, uint32_t block);
  void unlink(uint32_t* head, uint32_t* tail, uint32_t block);
  bool is_leaf(const Block& block) const;
  // Puts a ready block among the leaves, or takes it out, as its pins and children say.
  void place(uint32_t block);
  void forget(uint32_t block);
  void free_if_left(uint32_t block);
  uint32_t find(uint64_t hash) const;

  Header* header_ = nullptr;
  Block* records_ = nullptr;
  uint32_t* buckets_ = nullptr;
  uint32_t blocks_ = 0;
  uint32_t bucket_mask_ = 0;
};

}  // namespace millrace::kv
