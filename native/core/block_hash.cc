// The one translation unit that includes xxhash.h, inlined whole so that the short fixed-length paths fold.
#include "block_hash.h"

#include <bit>
#include <cstring>

#define XXH_INLINE_ALL
#include "../third_party/xxhash.h"

namespace millrace {

// The format is little-endian; hashing the ids where they lie needs a little-endian machine.
static_assert(std::endian::native == std::endian::little);

void hash_blocks(const uint32_t* ids, uint32_t block_size, uint32_t blocks, HashSeeds seeds, uint32_t* block_hashes,
                 uint32_t* sequence_hashes) {
  const size_t block_bytes = size_t{block_size} * sizeof(uint32_t);
  uint64_t link[2] = {0, 0};
  for (uint32_t i = 0; i < blocks; i++) {
    link[1] = XXH3_64bits_withSeed(ids + size_t{i} * block_size, block_bytes, seeds.block);
    link[0] = i == 0 ? link[1] : XXH3_64bits_withSeed(link, sizeof link, seeds.chain);
    std::memcpy(block_hashes + size_t{i} * 2, &link[1], sizeof link[1]);
    std::memcpy(sequence_hashes + size_t{i} * 2, &link[0], sizeof link[0]);
  }
}

}  // namespace millrace
