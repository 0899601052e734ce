// The kernels' index maths against the plans: over random pairs of layouts, the units of a launch, in their order, are the
// bytes of the runs that Transform::lower makes of the same blocks, in theirs; none is left out and none comes twice.
#include <cstring>

#include "crc32c.h"
#include "device_memory.h"
#include "index_map.h"
#include "random_layouts.h"

namespace millrace::kv::test {
namespace {

struct Bytes {
  uint64_t source, target, length;
};

// Neighbours on both sides become one, as runs may have been merged and units cut.
void append(std::vector<Bytes>* list, const Bytes& next) {
  if (!list->empty()) {
    Bytes& last = list->back();
    if (last.source + last.length == next.source && last.target + last.length == next.target) {
      last.length += next.length;
      return;
    }
  }
  list->push_back(next);
}

void one_case(std::mt19937& random) {
  const LayoutPair pair = random_pair(random);
  const auto blocks = static_cast<uint32_t>(pair.source_blocks.size());
  std::vector<Run> runs;
  std::string error;
  check(pair.transform->lower(pair.source_blocks.data(), pair.target_blocks.data(), blocks, &runs, &error) == Status::kOk, error);
  std::vector<Bytes> expected;
  for (const Run& run : runs)
    for (uint32_t i = 0; i < run.count; i++)
      append(&expected, {run.source + i * run.source_stride, run.target + i * run.target_stride, run.length});
  std::vector<Bytes> got;
  const uint64_t source_base = random();
  const uint64_t target_base = random();
  for (const Transform::Piece& piece : pair.transform->pieces()) {
    const KernelPiece at{piece.source,        piece.target,        piece.source_block_stride, piece.target_block_stride,
                         piece.source_stride, piece.target_stride};
    KernelJob job{};
    job.source_base = source_base;
    job.target_base = target_base;
    job.length = piece.length;
    job.block_count = blocks;
    job.rows = piece.count;
    job.chunk_bytes = pick(random, 1, 300);
    job.chunks = static_cast<uint32_t>((piece.length + job.chunk_bytes - 1) / job.chunk_bytes);
    job.units = blocks * job.rows * job.chunks;
    for (uint32_t unit = 0; unit < job.units; unit++) {
      const UnitSpan span = span_of(job, &at, pair.source_blocks.data(), pair.target_blocks.data(), unit);
      check(span.length > 0 && span.length <= job.chunk_bytes, "a unit has bytes, and at most a chunk");
      const uint32_t width = word_bytes(span);
      check(span.source % width == 0 && span.target % width == 0, "words are aligned on both sides");
      check(width == 16 || (span.source | span.target) % (width == 1 ? 4 : width * 2) != 0, "and no wider ones would be");
      append(&got, {span.source - source_base, span.target - target_base, span.length});
    }
  }
  check(got.size() == expected.size(), "as many stretches");
  check(std::memcmp(got.data(), expected.data(), got.size() * sizeof(Bytes)) == 0, "the same stretches in the same order");
}

void digest_case(std::mt19937& random) {
  std::vector<uint8_t> bytes(pick(random, 0, 200));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  uint32_t crc = ~0u;
  size_t at = 0;
  for (; at + 4 <= bytes.size() && random() % 8 != 0; at += 4) {
    uint32_t word;
    std::memcpy(&word, &bytes[at], sizeof word);
    crc = crc_step(crc ^ word, 32);
  }
  for (; at < bytes.size(); at++) crc = crc_step(crc ^ bytes[at], 8);
  check(~crc == crc32c(0, bytes.data(), bytes.size()), "the kernel's checksum is the processor's");
}

}  // namespace

void index_random(std::mt19937& random, uint32_t cases) {
  for (uint32_t i = 0; i < cases; i++) {
    one_case(random);
    digest_case(random);
  }
}

}  // namespace millrace::kv::test
