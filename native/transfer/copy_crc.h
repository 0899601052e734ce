// Copies and checks in one pass: what was read is summed up while it is stored, and what the target then holds is read again a
// little later, while it is in the nearest cache still, in the same loop that copies on. One owner steps it; no threads.
//
// The sum is a CRC of 64 bits (ECMA-182) in eight lanes that are never reduced to one, as nothing but the two sums of the
// same copy is ever compared; CRC-32C where the processor multiplies no polynomials.
#pragma once

#include <cstdint>

#include "copy_lines.h"

namespace millrace::kv {

struct SumLoops;

class CheckedCopy {
 public:
  // CRC-32C is what the fastest way is where there is no faster one; tests ask for it by name.
  enum class Way : uint8_t { kFastest, kCrc32c };
  explicit CheckedCopy(Way way = Way::kFastest);
  // Through the cache. The memory of the last bytes stays until more are copied or `is_same` was asked.
  void copy(uint8_t* target, const uint8_t* source, uint64_t length, Ahead ahead);
  // Of all bytes so far: whether the target held what was read from the source.
  bool is_same();

  // Bytes that are copied before they are read again. 4 KiB or 16 KiB make no difference of 2 %.
  static constexpr uint64_t kChunkBytes = 4096;

 private:
  struct alignas(64) Sum {
    uint64_t lanes[16] = {};
  };
  void copy_chunk(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead);
  void settle();

  const SumLoops* loops_;
  Sum read_;
  Sum written_;
  // Written, and not yet read again.
  const uint8_t* pending_ = nullptr;
  uint64_t pending_bytes_ = 0;

  friend struct SumLoops;
};

}  // namespace millrace::kv
