// Block hashing (R3, R4): XXH3-64 over the complete blocks of a prompt, and the chain over them. Pure functions over the
// caller's memory; any thread. The rules are written down at the TypeScript twin, src/router/hashing/block-hasher.ts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace {

struct HashSeeds {
  uint64_t block;
  uint64_t chain;
};

inline constexpr uint32_t kBlockMediaWords = 3;

// Blocks to hash: `blocks` of `block_size` ids each. `media` are entries of kBlockMediaWords words, block, hash low and
// hash high, in the order of their blocks.
struct HashedBlocks {
  const uint32_t* ids;
  uint32_t block_size;
  uint32_t blocks;
  const uint32_t* media;
  uint32_t media_count;
};

// Writes the sequence hash of each block as two words, the low one first. The first block follows `parent`; nullptr: it
// begins a sequence.
void hash_blocks(const HashedBlocks& what, HashSeeds seeds, const uint64_t* parent, uint32_t* sequence_hashes);

// xxh3_64 of a text, seed 0.
uint64_t hash_text(const char* text, size_t length);

}  // namespace millrace
