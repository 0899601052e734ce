// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78, as iSCSI and SSE 4.2 have it): what integrity checks of transfers and
// of stored blocks compare. Pure; any thread. Taken in the fastest way that the processor has, found out once: products of
// polynomials (AVX-512 with VPCLMULQDQ), else the instruction of SSE 4.2, else tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace millrace::kv {

// Of `size` bytes after those that gave `before`; 0 to begin.
uint32_t crc32c(uint32_t before, const void* bytes, size_t size);

// The same one way; tests compare them all.
struct Crc32cWay {
  const char* name;
  uint32_t (*of)(uint32_t before, const void* bytes, size_t size);
};
// Those that this processor can run, the fastest first.
std::span<const Crc32cWay> crc32c_ways();

}  // namespace millrace::kv
