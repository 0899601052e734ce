// Layouts that a peer describes, and block lists between two of them: u16 n, a layout of n bytes, u16 m, another of m bytes,
// and pairs of u32, blocks of the one and of the other. What is accepted is accepted again after it was written anew, and
// every run of a plan lies inside both pools.
#include <cstdlib>
#include <vector>

#include "copy.h"
#include "layout.h"
#include "plan.h"
#include "words.h"

namespace {

using namespace millrace::kv;

// Of one input; a transfer has more, a fuzzer has less time.
constexpr size_t kPairsMax = 64;

bool take_layout(WordReader& in, Layout* out) {
  const std::span<const uint8_t> bytes = in.bytes(in.take<uint16_t>());
  std::string error;
  if (Layout::decode(bytes.data(), bytes.size(), out, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return false;
  }
  std::vector<uint8_t> again;
  out->encode(&again);
  Layout second;
  if (Layout::decode(again.data(), again.size(), &second, &error) != Status::kOk || second.hash() != out->hash()) std::abort();
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  WordReader in(bytes, size);
  Layout source, target;
  if (!take_layout(in, &source) || !take_layout(in, &target)) return 0;
  std::string error;
  std::shared_ptr<const Transform> transform;
  if (Transform::make(source, target, {}, &transform, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return 0;
  }
  std::vector<uint32_t> from, to;
  while (in.left() >= 8 && from.size() < kPairsMax) {
    from.push_back(in.take<uint32_t>());
    to.push_back(in.take<uint32_t>());
  }
  std::vector<Run> runs;
  const auto count = static_cast<uint32_t>(from.size());
  if (transform->lower(from.data(), to.data(), count, &runs, &error) != Status::kOk) {
    if (error.empty() || !runs.empty()) std::abort();
    return 0;
  }
  uint64_t moved = 0;
  if (measure_runs(runs, source.pool_bytes(), target.pool_bytes(), &moved, &error) != Status::kOk) std::abort();
  if (moved != transform->bytes_per_block() * count) std::abort();
  return 0;
}
