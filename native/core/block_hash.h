// Block hashing (R3): XXH3-64 over the complete blocks of a prompt, and the chain over them. Pure functions over the
// caller's memory; any thread. The TypeScript twin is src/router/hashing/block-hasher.ts.
#pragma once

#include <cstdint>

namespace millrace {

struct HashSeeds {
  uint64_t block;
  uint64_t chain;
};

// Hashes `blocks` blocks of `block_size` ids each. `block_hashes` and `sequence_hashes` receive one 64-bit value per
// block as two 32-bit words, the low one first:
//   block_hashes[i]    = xxh3_64(ids of block i as little-endian words, seeds.block)
//   sequence_hashes[0] = block_hashes[0]
//   sequence_hashes[i] = xxh3_64(sequence_hashes[i-1] then block_hashes[i], little-endian, seeds.chain)
void hash_blocks(const uint32_t* ids, uint32_t block_size, uint32_t blocks, HashSeeds seeds, uint32_t* block_hashes,
                 uint32_t* sequence_hashes);

}  // namespace millrace
