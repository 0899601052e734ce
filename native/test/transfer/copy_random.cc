// Copies of random runs against a loop byte by byte, on both paths, in slices of random size, with all alignments; both
// memories end at pages that may not be touched. What is checked is damaged between slices.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "copy.h"
#include "copy_order.h"

namespace millrace::kv::test {
namespace {

// Bytes between two guard pages, against the last or against the first.
class Guarded {
 public:
  Guarded(uint64_t bytes, bool is_at_end) {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t inner = (bytes + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    start_ = static_cast<uint8_t*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check(start_ != MAP_FAILED && mprotect(start_ + page, inner, PROT_READ | PROT_WRITE) == 0, "guarded memory");
    bytes_ = start_ + page + (is_at_end ? inner - bytes : 0);
  }
  ~Guarded() { munmap(start_, mapped_); }
  Guarded(const Guarded&) = delete;
  uint8_t* bytes() const { return bytes_; }

 private:
  uint8_t* start_;
  uint8_t* bytes_;
  uint64_t mapped_;
};

struct Case {
  std::vector<Run> runs;
  uint64_t source_bytes = 0;
  uint64_t target_bytes = 0;
};

// Runs whose targets do not meet, one behind the other, with gaps; sources lie anywhere.
Case random_case(std::mt19937& random) {
  static constexpr uint32_t kLengths[] = {1, 31, 64, 128, 160, 256, 512, 1024, 1025, 4096, 5000, 16'384};
  Case made;
  made.source_bytes = pick(random, 60'000, 200'000);
  const bool is_aligned = pick(random, 0, 1) == 0;
  const auto gap = [&] { return is_aligned ? pick(random, 0, 2) * 64 : pick(random, 0, 70); };
  uint64_t target = gap();
  for (uint32_t n = pick(random, 1, 12); n > 0; n--) {
    Run run{};
    run.length = kLengths[pick(random, 0, std::size(kLengths) - 1)];
    run.count = pick(random, 1, static_cast<uint32_t>(40'000 / run.length + 1));
    run.source_stride = run.count == 1 ? run.length : pick(random, 0, static_cast<uint32_t>((made.source_bytes - run.length) / (run.count - 1)));
    run.source = pick(random, 0, static_cast<uint32_t>(made.source_bytes - run.length - run.source_stride * (run.count - 1)));
    run.target_stride = run.length + gap();
    run.target = target;
    run.block = n;
    target += run.target_stride * (run.count - 1) + run.length + gap();
    made.runs.push_back(run);
  }
  made.target_bytes = target;
  return made;
}

void copy_case(std::mt19937& random) {
  const Case given = random_case(random);
  const Guarded source(given.source_bytes, pick(random, 0, 1) == 0);
  const Guarded target(given.target_bytes, pick(random, 0, 1) == 0);
  for (uint64_t i = 0; i < given.source_bytes; i++) source.bytes()[i] = static_cast<uint8_t>(random());
  std::memset(target.bytes(), 0x5a, given.target_bytes);

  std::vector<uint8_t> expected(given.target_bytes, 0x5a);
  // Of each byte in the order of the copy: where it goes, and whether it is checked.
  std::vector<std::pair<uint64_t, bool>> in_order;
  const auto integrity = static_cast<Integrity>(pick(random, 0, 2));
  for (const Run& run : given.runs) {
    const bool is_checked = integrity == Integrity::kFull || (integrity == Integrity::kSample && run.block % kSampleBlocks == 0);
    for (uint32_t piece = 0; piece < run.count; piece++) {
      for (uint64_t i = 0; i < run.length; i++) {
        const uint64_t at = run.target + piece * run.target_stride + i;
        expected[at] = source.bytes()[run.source + piece * run.source_stride + i];
        in_order.push_back({at, is_checked});
      }
    }
  }
  const uint64_t bytes = in_order.size();
  uint64_t measured = 0;
  std::string error;
  check(measure_runs(given.runs, given.source_bytes, given.target_bytes, &measured, &error) == Status::kOk, error);
  check(measured == bytes, "runs are measured");
  check(measure_runs(given.runs, given.source_bytes, given.runs.back().target, &measured, &error) == Status::kInvalid,
        "a target that is too short is refused");

  const auto path = static_cast<CopyPath>(pick(random, 0, 1));
  Copy copy(given.runs, source.bytes(), target.bytes(), path, integrity);
  const uint32_t slice = pick(random, 1, 100'000);
  const bool wants_damage = pick(random, 0, 1) == 0;
  bool is_damaged = false;
  while (!copy.step(slice)) {
    // The byte that was written last is read again later.
    const auto [at, is_checked] = in_order[copy.bytes() - 1];
    if (!wants_damage || is_damaged || !is_checked || pick(random, 0, 2) != 0) continue;
    is_damaged = true;
    const auto flipped = static_cast<uint8_t>(1u << pick(random, 0, 7));
    target.bytes()[at] ^= flipped;
    expected[at] ^= flipped;
  }
  check(copy.bytes() == bytes, "bytes are counted");
  check(std::memcmp(target.bytes(), expected.data(), expected.size()) == 0, "the target holds what a byte loop makes");
  check(copy.verdict() == (is_damaged ? Status::kCorrupt : Status::kOk), "damage is seen, and nothing else");
}

// Bytes in stretches of any length, by each way of summing up; now and then one of the last chunk is damaged before it is read
// again.
void checked_case(std::mt19937& random) {
  const uint32_t bytes = pick(random, 1, 40'000);
  std::vector<uint8_t> source(bytes), target(bytes);
  for (uint8_t& byte : source) byte = static_cast<uint8_t>(random());
  CheckedCopy copy(static_cast<CheckedCopy::Way>(pick(random, 0, 1)));
  const bool wants_damage = pick(random, 0, 1) == 0;
  bool is_damaged = false;
  for (uint32_t at = 0; at < bytes;) {
    const uint32_t length = std::min(pick(random, 1, 10'000), bytes - at);
    copy.copy(target.data() + at, source.data() + at, length, {});
    check(std::memcmp(target.data() + at, source.data() + at, length) == 0, "a checked copy copies");
    at += length;
    if (!wants_damage || is_damaged) continue;
    is_damaged = true;
    target[at - 1] ^= static_cast<uint8_t>(1u << pick(random, 0, 7));
  }
  check(copy.is_same() == !is_damaged, "a bit that differs is seen, and nothing else");
}

// Lists of any length and spread, twice the same source among them: the same pairs, and in order where they were sorted.
void order_case(std::mt19937& random) {
  const uint32_t count = pick(random, 1, 5000);
  const uint32_t spread = uint32_t{1} << pick(random, 1, 31);
  std::vector<std::pair<uint32_t, uint32_t>> given(count);
  for (auto& [source, target] : given) {
    source = static_cast<uint32_t>(random()) % spread;
    target = static_cast<uint32_t>(random());
  }
  std::vector<uint32_t> sources, targets;
  for (const auto& [source, target] : given) {
    sources.push_back(source);
    targets.push_back(target);
  }
  const BlockPairs ordered = in_copy_order(sources, targets);
  const bool is_untouched = ordered.sources == sources.data() && ordered.targets == targets.data();
  check(is_untouched || std::is_sorted(ordered.sources, ordered.sources + count), "blocks are in the order of their sources");
  check(is_untouched == (count < 1024 || std::is_sorted(sources.begin(), sources.end())), "short lists stay as they are");
  // Pairs of one source keep their order among themselves.
  if (!is_untouched) std::stable_sort(given.begin(), given.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (uint32_t i = 0; i < count; i++) {
    check(given[i] == std::pair(ordered.sources[i], ordered.targets[i]), "every block keeps its partner");
  }
}

}  // namespace

void copy_random(std::mt19937& random, uint32_t cases) {
  for (uint32_t n = 0; n < cases; n++) copy_case(random);
  for (uint32_t n = 0; n < cases; n++) checked_case(random);
  for (uint32_t n = 0; n < cases; n++) order_case(random);
  const Run beyond[] = {{UINT64_MAX - 4, 0, 8, 8, 8, 1, 0}, {0, 0, 8, UINT64_MAX / 2, 8, 4, 0}, {0, 0, 8, 8, 8, 0, 0}};
  for (const Run& run : beyond) {
    uint64_t bytes = 0;
    std::string error;
    check(measure_runs({&run, 1}, 1 << 20, 1 << 20, &bytes, &error) == Status::kInvalid && !error.empty(),
          "runs whose ends overflow, and empty ones, are refused");
  }
}

}  // namespace millrace::kv::test
