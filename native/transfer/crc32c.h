// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78, as iSCSI and SSE 4.2 have it): what integrity checks of transfers and
// of stored blocks compare. Pure; any thread. Takes the processor's instruction where there is one, tables elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kv {

// Of `size` bytes after those that gave `before`; 0 to begin.
uint32_t crc32c(uint32_t before, const void* bytes, size_t size);

// The same by tables alone, whatever the processor: what other machines run, and an oracle for the tests.
uint32_t crc32c_portable(uint32_t before, const void* bytes, size_t size);

}  // namespace millrace::kv
