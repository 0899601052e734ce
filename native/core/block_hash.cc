// The one translation unit that includes xxhash.h, inlined whole so that the short fixed-length paths fold.
#include "block_hash.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include "../third_party/xxhash.h"

namespace millrace {

// The format is little-endian; hashing the ids where they lie needs a little-endian machine.
static_assert(std::endian::native == std::endian::little);

namespace {

// What XXH3 reads of a seed: the secret that it else derives anew for every input of more than 240 bytes.
class Seeded {
 public:
  explicit Seeded(uint64_t seed) : seed_(seed) { XXH3_generateSecret_fromSeed(secret_, seed); }
  // XXH3_64bits_withSeed.
  uint64_t hash(const void* bytes, size_t length) const {
    return XXH3_64bits_withSecretandSeed(bytes, length, secret_, sizeof secret_, seed_);
  }

 private:
  uint64_t seed_;
  alignas(64) uint8_t secret_[XXH3_SECRET_DEFAULT_SIZE];
};

// The hash of a block with `count` media: their hashes follow the ids, the smallest first.
uint64_t hash_with_media(const uint32_t* ids, uint32_t block_size, const uint32_t* media, uint32_t count,
                         const Seeded& seeded) {
  std::vector<uint64_t> hashes(count);
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = media + size_t{i} * kBlockMediaWords;
    hashes[i] = uint64_t{entry[2]} << 32 | entry[1];
  }
  std::sort(hashes.begin(), hashes.end());
  const size_t id_bytes = size_t{block_size} * sizeof(uint32_t);
  std::vector<uint8_t> frame(id_bytes + count * sizeof(uint64_t));
  std::memcpy(frame.data(), ids, id_bytes);
  std::memcpy(frame.data() + id_bytes, hashes.data(), count * sizeof(uint64_t));
  return seeded.hash(frame.data(), frame.size());
}

}  // namespace

void hash_blocks(const HashedBlocks& what, HashSeeds seeds, const uint64_t* parent, uint32_t* sequence_hashes) {
  const size_t block_bytes = size_t{what.block_size} * sizeof(uint32_t);
  const Seeded seeded(seeds.block);
  uint64_t link[2] = {parent == nullptr ? 0 : *parent, 0};
  uint32_t entry = 0;
  for (uint32_t i = 0; i < what.blocks; i++) {
    const uint32_t* ids = what.ids + size_t{i} * what.block_size;
    const uint32_t first = entry;
    while (entry < what.media_count && what.media[size_t{entry} * kBlockMediaWords] == i) entry++;
    link[1] = entry == first ? seeded.hash(ids, block_bytes)
                             : hash_with_media(ids, what.block_size, what.media + size_t{first} * kBlockMediaWords,
                                               entry - first, seeded);
    link[0] = i == 0 && parent == nullptr ? link[1] : XXH3_64bits_withSeed(link, sizeof link, seeds.chain);
    std::memcpy(sequence_hashes + size_t{i} * 2, &link[0], sizeof link[0]);
  }
}

uint64_t hash_text(const char* text, size_t length) { return XXH3_64bits(text, length); }

}  // namespace millrace
