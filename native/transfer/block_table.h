// States of a pool's blocks (K4), one cache line each, in shared memory that TypeScript, this process and peers on the same
// host map (layout: transfer/blocks/block-descriptor.ts, from which millrace/block_descriptor.h is generated):
//
//     free → reserved → filling → ready ⇄ pinned → evictable → quarantine → free
//
// One owner process changes states; peers read generation and hash, and count themselves in and out of `inflight`. Only
// the step to free looks at `inflight`: a block that any operation may still touch is never handed out again. The
// generation goes up with every reservation, so a reader that compares it before and after its copy knows whose bytes it has.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "status.h"

namespace millrace::kv {

struct BlockStats {
  uint32_t free, reserved, filling, ready, pinned, evictable, quarantine;
  uint64_t evictions;
};

class BlockTable {
 public:
  // `words` is shared memory of table_words(blocks) 32-bit words, zeroed; kept by the caller.
  static Status create(uint32_t* words, uint32_t blocks, std::unique_ptr<BlockTable>* out, std::string* error);
  // Over the table of another process: generations may be read and `inflight` counted, nothing else.
  static Status attach(uint32_t* words, uint64_t count, std::unique_ptr<BlockTable>* out, std::string* error);
  static uint64_t table_words(uint32_t blocks);

  uint32_t blocks() const { return blocks_; }

  // Takes `count` free blocks for `tenant`, evicting where there are too few (leaf first, least recently used first);
  // kFull and nothing taken when even that is not enough.
  Status reserve(uint32_t count, uint32_t tenant, uint64_t now_ms, uint32_t* blocks_out, uint32_t* generations_out);
  // A write into the reserved blocks begins; ends as ready with what they hold, or as failed.
  Status fill(std::span<const uint32_t> blocks);
  // `parent`: the block that comes before it in the sequence, or kNoBlock: leaves are evicted before their parents.
  Status commit(uint32_t block, uint64_t hash, uint32_t crc, uint32_t parent, uint64_t now_ms);
  // Pins count; the last unpin makes it evictable. `until_ms` pins besides for a time (a lease); 0: not.
  Status pin(uint32_t block, uint32_t generation, uint64_t until_ms);
  Status unpin(uint32_t block, uint32_t generation, uint64_t now_ms);
  // To free, through quarantine while operations are in flight.
  Status release(uint32_t block);
  // Operations that touch a block. leave frees a block in quarantine when it was the last.
  Status enter(uint32_t block, uint32_t generation);
  void leave(uint32_t block);
  // Everything that a dead peer had in flight is fenced: its entries are taken back.
  void fence(uint32_t peer);

  uint32_t generation(uint32_t block) const;
  // Blocks of the longest prefix of `hashes` that are ready, pinned or evictable.
  uint32_t match(std::span<const uint64_t> hashes, uint32_t* blocks_out) const;
  // Ends pins whose time is over.
  void expire(uint64_t now_ms);
  BlockStats stats() const;

 private:
  uint32_t* words_ = nullptr;
  uint32_t blocks_ = 0;
};

inline constexpr uint32_t kNoBlock = 0xffff'ffff;

}  // namespace millrace::kv
