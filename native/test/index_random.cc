// Random operations on a prefix index far too small for them, with its self-check in between. See index_random.h.
#include "index_random.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "prefix_index.h"

namespace {

constexpr uint32_t kChains = 40;
constexpr uint32_t kDepth = 24;
constexpr uint32_t kHolderCount = 40;

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

void one_operation(millrace::IndexWriter& writer, const std::vector<uint32_t>& words, uint64_t now, std::mt19937& random) {
  const uint32_t chain = random() % kChains;
  const uint32_t from = random() % kDepth;
  const uint32_t count = 1 + random() % (kDepth - from);
  const uint32_t holder = random() % kHolderCount * 7;
  const uint32_t tier = random() % 3;
  const uint32_t* path = words.data() + size_t{chain} * kDepth * 2;
  const uint32_t* hashes = path + size_t{from} * 2;
  std::vector<uint32_t> names(count * millrace::kIndexEngineHashWords);
  for (uint32_t i = 0; i < count; i++) {
    names[i * 4] = hashes[i * 2];
    names[i * 4 + 1] = hashes[i * 2 + 1];
    names[i * 4 + 2] = holder;
  }
  const uint64_t parent = from == 0 ? 0 : millrace::join_hash(hashes[-2], hashes[-1]);
  switch (random() % 12) {
    case 0: case 1: case 2: case 3:
      writer.store(holder, from != 0, parent, hashes, count, tier, random() % 3 == 0 ? nullptr : names.data());
      break;
    case 4: case 5:
      writer.remove(holder, hashes, count, tier);
      break;
    case 6: case 7:
      writer.remove_engine(holder, names.data(), count, tier);
      break;
    case 8:
      writer.predict(holder, path, from, from + count, now + 30);
      break;
    case 9:
      writer.expire(now);
      break;
    case 10:
      if (random() % 40 == 0) writer.clear_holder(holder);
      if (random() % 40 == 0) writer.remove_holder(holder);
      break;
    default:
      writer.add_holder(holder);
      writer.sweep(random() % 20);
  }
}

}  // namespace

void index_random(long operations, std::mt19937& random) {
  // Blocks of all chains do not fit, nor do their names, chunks and predictions.
  const uint32_t sizes[4] = {60 + static_cast<uint32_t>(random() % 400), 1 + static_cast<uint32_t>(random() % 60),
                             40 + static_cast<uint32_t>(random() % 800), 1 + static_cast<uint32_t>(random() % 50)};
  const size_t length = 60000 + size_t{sizes[0]} * 12 + sizes[1] * 4 + sizes[2] * 4 + sizes[3] * 16;
  auto* words = static_cast<uint32_t*>(::operator new(length * 4, std::align_val_t{64}));
  for (size_t i = 0; i < length; i++) words[i] = 0;
  words[millrace::kIndexHeaderMagic] = millrace::kIndexMagic;
  words[millrace::kIndexHeaderBlocksMax] = sizes[0];
  words[millrace::kIndexHeaderChunksMax] = sizes[1];
  words[millrace::kIndexHeaderNamesMax] = sizes[2];
  words[millrace::kIndexHeaderPredictionsMax] = sizes[3];
  words[millrace::kIndexHeaderBucketSeedLow] = static_cast<uint32_t>(random());
  millrace::IndexView view;
  check(millrace::view_index(words, length, &view), "the segment is large enough");
  millrace::IndexWriter writer(view);
  auto reader = std::make_unique<millrace::IndexReader>(view);
  std::vector<uint32_t> hashes(size_t{kChains} * kDepth * 2);
  for (uint32_t i = 0; i < hashes.size(); i++) {
    // Every second chain begins like the one before it.
    const uint32_t chain = i / (kDepth * 2);
    const bool shared = chain % 2 == 1 && i % (kDepth * 2) < kDepth;
    hashes[i] = shared ? hashes[i - kDepth * 2] : static_cast<uint32_t>(random());
  }
  uint32_t holders[kHolderCount];
  for (uint32_t i = 0; i < kHolderCount; i++) holders[i] = i * 7;
  std::vector<uint32_t> depths(kHolderCount * 2);
  for (long n = 0; n < operations; n++) {
    one_operation(writer, hashes, static_cast<uint64_t>(n), random);
    if (n % 64 == 0) check(writer.consistent(), "links, counts and flags agree");
    reader->lookup(hashes.data() + static_cast<size_t>(n % kChains) * kDepth * 2, kDepth, holders, kHolderCount, depths.data());
    for (uint32_t i = 0; i < kHolderCount; i++) check(depths[i] >= depths[kHolderCount + i], "the device is a part");
  }
  while (writer.sweep(1000)) {
  }
  check(writer.consistent() && reader->given_up() == 0, "consistent in the end");
  ::operator delete(words, std::align_val_t{64});
}
