// Sorts pairs of blocks by their sources, digit by digit. See copy_order.h.
#include "copy_order.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace millrace::kv {
namespace {

// Below this the lists are so short, or the blocks so large, that the order does not matter.
constexpr size_t kSortedBlocksLeast = 1024;
constexpr uint32_t kDigitBits = 11;
constexpr uint32_t kDigits = 1u << kDigitBits;

}  // namespace

BlockPairs in_copy_order(std::span<const uint32_t> sources, std::span<const uint32_t> targets) {
  const size_t count = sources.size();
  if (count < kSortedBlocksLeast || std::is_sorted(sources.begin(), sources.end())) return {sources.data(), targets.data()};
  thread_local std::array<std::vector<uint32_t>, 4> kept;
  for (std::vector<uint32_t>& list : kept) list.resize(count);
  const uint32_t last = *std::max_element(sources.begin(), sources.end());
  BlockPairs from{sources.data(), targets.data()};
  size_t side = 0;
  for (uint32_t shift = 0; shift < 32 && last >> shift != 0; shift += kDigitBits, side ^= 2) {
    std::array<uint32_t, kDigits> place{};
    for (size_t i = 0; i < count; i++) place[from.sources[i] >> shift & (kDigits - 1)]++;
    uint32_t before = 0;
    for (uint32_t& here : place) before += std::exchange(here, before);
    uint32_t* const to_sources = kept[side].data();
    uint32_t* const to_targets = kept[side + 1].data();
    for (size_t i = 0; i < count; i++) {
      const uint32_t at = place[from.sources[i] >> shift & (kDigits - 1)]++;
      to_sources[at] = from.sources[i];
      to_targets[at] = from.targets[i];
    }
    from = {to_sources, to_targets};
  }
  return from;
}

}  // namespace millrace::kv
