// One operation of the memory transport, from its first slice to its completion. See memory_work.h.
#include "memory_work.h"

#include <algorithm>
#include <cstring>

#include "../transfer/crc32c.h"

namespace millrace::kv {
namespace {

// Copying a piece costs at least as much as this many bytes do.
constexpr uint64_t kPieceBytesLeast = 64;
constexpr uint32_t kDelayStepsMax = 64;
constexpr uint32_t kLingerStepsMax = 256;

}  // namespace

void MemoryWork::draw_faults(const MemoryFaults& faults, MemoryFaultCounts* counts, std::mt19937_64& random) {
  const auto meets = [&](uint32_t chance) { return chance != 0 && random() % 10'000 < chance; };
  if (meets(faults.delay)) {
    delay_steps = 1 + static_cast<uint32_t>(random() % kDelayStepsMax);
    count(counts, &MemoryFaultCounts::delayed);
  }
  if (meets(faults.reorder)) {
    std::shuffle(runs.begin(), runs.end(), random);
    count(counts, &MemoryFaultCounts::reordered);
  }
  if (meets(faults.linger)) linger_steps = 1 + static_cast<uint32_t>(random() % kLingerStepsMax);
  is_dropped = meets(faults.drop);
  if (is_dropped) count(counts, &MemoryFaultCounts::dropped);
  // These are counted when they happen: a cancelled operation may not come so far.
  is_corrupt = meets(faults.corrupt);
  if (meets(faults.partial)) fail_after = random() % bytes;
  if (meets(faults.cut)) cut_after = random() % bytes;
}

bool MemoryWork::copy_slice(uint32_t slice_bytes) {
  const bool reads = operation.direction == Direction::kRead;
  Pool* const theirs = remote_pool();
  const uint8_t* const source = (reads ? theirs : operation.local)->address();
  uint8_t* const target = (reads ? operation.local : theirs)->address();
  uint64_t budget = slice_bytes;
  while (budget > 0 && run < runs.size()) {
    const Run& it = runs[run];
    const uint64_t stop = std::min(fail_after, cut_after);
    const uint64_t most = std::min(budget, stop > copied ? stop - copied : 0);
    const uint64_t length = std::min(it.length - offset, most);
    if (length == 0) return false;
    std::memcpy(target + it.target + piece * it.target_stride + offset,
                source + it.source + piece * it.source_stride + offset, length);
    copied += length;
    budget -= std::min(budget, std::max(length, kPieceBytesLeast));
    offset += length;
    if (offset < it.length) continue;
    offset = 0;
    if (++piece < it.count) continue;
    piece = 0;
    run++;
  }
  return run == runs.size();
}

void MemoryWork::corrupt(std::mt19937_64& random, MemoryFaultCounts* counts) {
  const bool reads = operation.direction == Direction::kRead;
  Pool* const theirs = remote_pool();
  const Run& one = runs[random() % runs.size()];
  const uint64_t at = one.target + random() % one.count * one.target_stride + random() % one.length;
  (reads ? operation.local : theirs)->address()[at] ^= 0x40;
  count(counts, &MemoryFaultCounts::corrupted);
  if (operation.integrity == Integrity::kFull) count(counts, &MemoryFaultCounts::corrupted_checked);
}

bool MemoryWork::verify_block() {
  const bool reads = operation.direction == Direction::kRead;
  Pool* const theirs = remote_pool();
  const uint32_t source_block = (reads ? operation.remote_blocks : operation.local_blocks)[verified];
  const uint32_t target_block = (reads ? operation.local_blocks : operation.remote_blocks)[verified];
  const uint8_t* const source = (reads ? theirs : operation.local)->address();
  const uint8_t* const target = (reads ? operation.local : theirs)->address();
  std::vector<Run> of_block;
  std::string error;
  operation.transform->lower(&source_block, &target_block, 1, &of_block, &error);
  uint32_t sent = 0;
  uint32_t arrived = 0;
  for (const Run& one : of_block) {
    for (uint32_t i = 0; i < one.count; i++) {
      sent = crc32c(sent, source + one.source + i * one.source_stride, one.length);
      arrived = crc32c(arrived, target + one.target + i * one.target_stride, one.length);
    }
  }
  verified += operation.integrity == Integrity::kSample ? kSampleBlocks : 1;
  return sent == arrived;
}

}  // namespace millrace::kv
