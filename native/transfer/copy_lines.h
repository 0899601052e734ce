// The loops that copy bytes around the cache, by what the processor can do, with an eye on the stretch of the list that comes
// later, which a memcpy cannot have, as it does not know the list. Pure; any thread.
#pragma once

#include <cstdint>

namespace millrace::kv {

inline constexpr uint64_t kLineBytes = 64;

// A stretch of the list that is copied later: its lines are fetched while those of now are stored. Empty at the list's end.
struct Ahead {
  uint8_t* target = nullptr;
  const uint8_t* source = nullptr;
  uint64_t length = 0;
};

// `count` pieces of whole lines; targets begin on lines.
struct Strided {
  uint8_t* target;
  const uint8_t* source;
  uint64_t length;
  uint64_t target_stride;
  uint64_t source_stride;
  uint32_t count;
};

// Around the cache; null where the processor cannot. Ordered against other stores by `fence_stores` alone.
struct CopyLines {
  void (*stream)(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead);
  void (*stream_strided)(const Strided& run);
};

// Found out once.
const CopyLines& copy_lines();

// Lines of a stretch into the cache.
void fetch_lines(const uint8_t* source, uint64_t length);

void fence_stores();

}  // namespace millrace::kv
